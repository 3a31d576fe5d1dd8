"""What a model can be asked, and what it answers.

All of it runs in the engine's process, and vLLM says what a model can do: what its runner and
its tasks are, which modalities it takes, and what its prompts look like.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from netloader.errors import NetloaderError
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.inspect.parity.rows import Said
from netloader.vllm_plugin.patches import compat

Prompts = Sequence[Sequence[int]]
Inputs = list[dict[str, Any]]

SHORT, SHORT_CACHE_BYTES = 128, 256 << 20
"""Tokens of a prompt and its answer, and room for them, of a large model too."""
LONG, LONG_CACHE_BYTES = 4096, 1 << 30
"""The same for a model that takes images or audio: one item has hundreds of tokens."""

IMAGE_PIXELS = 64
AUDIO_HZ, AUDIO_SAMPLES = 16_000, 8_000

PAIR = ("alpha beta", ["gamma", "delta epsilon"])
"""A query and two documents, for models that score pairs: their prompts are made of text."""

NUMBERS_SHOWN = 4
POOLING = ("embed", "classify", "token_embed", "token_classify")


class UnanswerableError(NetloaderError):
    """A model cannot be asked here; the message says what would help."""


def settle(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `vllm.LLM` that suit the model; what is given already stays.

    A tokenizer is loaded only where vLLM insists on one, and a model that takes images or audio has
    room for them.

    Raises:
        UnanswerableError: vLLM does not take the model, or wants a tokenizer that is not there.
    """
    from vllm.engine.arg_utils import EngineArgs

    open_ = {"max_model_len", "skip_tokenizer_init"}
    known = {name: value for name, value in arguments.items() if name not in open_}
    try:
        config: Any = EngineArgs(**known).create_model_config()
    except Exception as error:  # pydantic's, with a page of what it was given
        raise UnanswerableError(_why_not(str(error))) from error
    media, pooling = config.is_multimodal_model, config.runner_type == "pooling"
    suited = {
        "skip_tokenizer_init": not (media or pooling),
        "max_model_len": min(LONG if media else SHORT, config.max_model_len),
        "kv_cache_memory_bytes": LONG_CACHE_BYTES if media else SHORT_CACHE_BYTES,
    }
    settled = {**suited, **arguments}
    if not settled["skip_tokenizer_init"]:
        _require_tokenizer(config, "takes images or audio" if media else "is a pooling model")
    return settled


def _why_not(message: str) -> str:
    """The sentence in a message of vLLM's that says why it does not take a model."""
    lines = [line.strip().removeprefix("Value error, ") for line in message.splitlines()]
    told = [line for line in lines if line and "validation error" not in line]
    sentence, _, _ = (told or ["it does not say why"])[0].partition(". ")
    return (
        f"vLLM does not take this model as it is: {sentence}. A model with code of its own wants "
        "--engine '{\"trust_remote_code\": true}'; other arguments of vllm.LLM go there as well"
    )


def _require_tokenizer(config: Any, because: str) -> None:
    from vllm.tokenizers import cached_tokenizer_from_config

    try:
        cached_tokenizer_from_config(config)
    except Exception as error:  # each kind of tokenizer fails in a way of its own
        raise UnanswerableError(
            f"{config.tokenizer!r} has no tokenizer that loads ({type(error).__name__}), and vLLM "
            f"wants one because the model {because}: add its tokenizer files, or name a folder "
            'that has them in --engine \'{"tokenizer": "FOLDER"}\''
        ) from error


def ask(llm: Any, prompts: Prompts, tokens: int) -> Said:
    """Every question the model can answer.

    Raises:
        UnanswerableError: there is none.
    """
    _forget(llm)
    media = dict(_media(llm, prompts[0]))
    inputs = [*([] if _wants_media(llm) else as_inputs(prompts)), *media.values()]
    kinds = [*([] if _wants_media(llm) else ["tokens"]), *media]
    if llm.llm_engine.model_config.runner_type == "pooling":
        return _pool(llm, inputs, kinds)
    said = generate(llm, inputs, tokens)
    return Said((f"generate ({', '.join(kinds)})",), said.tokens, said.logprobs, said.drafts)


def as_inputs(prompts: Prompts) -> Inputs:
    """Prompts of token ids, as vLLM takes them."""
    return [{"prompt_token_ids": list(prompt)} for prompt in prompts]


def _forget(llm: Any) -> None:
    """Drop what was computed from weights that may have changed: prefixes, encoded images."""
    llm.reset_prefix_cache()
    if llm.llm_engine.model_config.is_multimodal_model:
        llm.reset_mm_cache()
        llm.llm_engine.reset_encoder_cache()


def generate(llm: Any, inputs: Inputs, tokens: int) -> Said:
    """Greedy tokens, their log-probabilities, and how many drafts were proposed and accepted."""
    from vllm import SamplingParams

    greedy = SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, logprobs=0
    )
    before = _drafts(llm)
    answers = [o.outputs[0] for o in llm.generate(inputs, greedy, use_tqdm=False)]
    proposed, accepted = (now - then for now, then in zip(_drafts(llm), before, strict=True))
    chosen = [
        [at[token].logprob for at, token in zip(a.logprobs, a.token_ids, strict=True)]
        for a in answers
    ]
    drafts = (proposed, accepted)
    return Said(("generate",), [list(a.token_ids) for a in answers], chosen, drafts)


def _drafts(llm: Any) -> tuple[int, int]:
    """Counters since the engine started: draft tokens proposed, and accepted."""
    found = {metric.name: metric for metric in llm.get_metrics()}
    names = ("num_draft_tokens", "num_accepted_tokens")
    counters = (found.get(f"vllm:spec_decode_{name}") for name in names)
    proposed, accepted = (0 if counter is None else int(counter.value) for counter in counters)
    return proposed, accepted


def _pool(llm: Any, inputs: Inputs, kinds: Sequence[str]) -> Said:
    """What the pooler makes of each prompt; of pairs of sentences too, for a cross-encoder."""
    task = _task(llm)
    results = llm.encode(inputs, pooling_task=task, use_tqdm=False)
    outputs = {f"{task} of prompt {n}": _shown(r.outputs.data) for n, r in enumerate(results)}
    asked = [f"{task} ({', '.join(kinds)})"]
    labels = getattr(llm.llm_engine.model_config.hf_config, "num_labels", 0)
    if task == "classify" and labels == 1:
        scores = llm.score(*PAIR, use_tqdm=False)
        outputs |= {f"score of pair {n}": repr(s.outputs.score) for n, s in enumerate(scores)}
        asked.append("score (pairs of text)")
    return Said(tuple(asked), outputs=outputs)


def _task(llm: Any) -> str:
    tasks = llm.llm_engine.get_supported_tasks()
    chosen = compat.pooling_task(llm) or next((t for t in POOLING if t in tasks), "")
    if chosen not in POOLING:
        raise UnanswerableError(
            f"the model's pooling tasks are {', '.join(tasks)}, and none of them is one of "
            f"{', '.join(POOLING)}: choose one with --engine "
            '\'{"pooler_config": {"task": "embed"}}\', or compare without answers (--load-only)'
        )
    return str(chosen)


def _shown(data: torch.Tensor) -> str:
    tensor = data.detach()
    digest = inventory.digest(inventory.Inventory({"": tensor}))[""]
    first = ", ".join(f"{number:.6g}" for number in tensor.reshape(-1)[:NUMBERS_SHOWN].tolist())
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} {digest}: {first}, ..."


def _wants_media(llm: Any) -> bool:
    """Whether a prompt of tokens alone does not do: the encoder of Whisper takes audio only."""
    config = llm.llm_engine.model_config
    return bool(config.is_encoder_decoder and config.is_multimodal_model)


def _media(llm: Any, prompt: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A prompt with an item of each modality that can be made up here; the model words it."""
    if not llm.llm_engine.model_config.is_multimodal_model:
        return
    processor = llm.renderer.get_mm_processor()
    for modality in processor.info.allowed_mm_limits:
        if modality in _MADE:
            text = processor.dummy_inputs.get_dummy_text({modality: 1})
            ids = llm.get_tokenizer().encode(text, add_special_tokens=False)
            data = {modality: _MADE[modality]()}
            yield modality, {"prompt_token_ids": [*ids, *prompt], "multi_modal_data": data}


def _image() -> Any:
    """A picture in which no two rows or columns are alike."""
    from PIL import Image

    x, y = torch.meshgrid(torch.arange(IMAGE_PIXELS), torch.arange(IMAGE_PIXELS), indexing="ij")
    pixels = torch.stack([x * 3 % 256, y * 5 % 256, x * y % 256], dim=-1).to(torch.uint8)
    return Image.fromarray(pixels.numpy())


def _audio() -> Any:
    """Half a second that rises in pitch, and its sampling rate."""
    time = torch.arange(AUDIO_SAMPLES) / AUDIO_HZ
    return (torch.sin(2000 * (1 + time) * time).numpy(), AUDIO_HZ)


_MADE = {"image": _image, "audio": _audio}
