"""The engine's end of the conversation, with a vLLM of paper."""

import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from netloader.vllm_plugin.inspect.inventory import digest, take
from netloader.vllm_plugin.inspect.parity import __main__ as command
from netloader.vllm_plugin.inspect.parity.controls import erase, shift
from netloader.vllm_plugin.inspect.parity.engine import (
    HERE,
    Engine,
    EngineError,
    attend,
    holdings,
    sentence,
)
from netloader.vllm_plugin.inspect.parity.questions import UnanswerableError, ask, settle
from netloader.vllm_plugin.inspect.parity.rows import Row
from netloader.vllm_plugin.inspect.parity.run import Case


class Worker:
    """A worker with a target and a draft that share an embedding."""

    def __init__(self) -> None:
        target, draft = nn.Module(), nn.Module()
        target.embed = nn.Embedding(2, 2)
        draft.embed = target.embed
        draft.fc = nn.Linear(2, 2)
        draft.fc.cpu_linear = lambda x, weight, bias: x + 1  # type: ignore[assignment]
        self.target, self.draft = target, draft
        self.model_runner = SimpleNamespace(
            get_model=lambda: target, drafter=SimpleNamespace(model=draft)
        )
        self.model_config = SimpleNamespace(model="/here")
        self.reset = 0

    def reset_weights(self) -> None:
        self.reset += 1


def config_of(model: str) -> Any:
    """What vLLM makes of a model, by its name here: "pooling", "vision", "audio", "tiny"."""
    return SimpleNamespace(
        dtype=torch.bfloat16,
        quantization=None,
        runner_type="pooling" if model.startswith("pooling") else "generate",
        is_multimodal_model=model in MEDIA,
        is_encoder_decoder=model == "audio",
        max_model_len=1024,
        tokenizer=model,
        hf_config=SimpleNamespace(num_labels=1),
    )


MEDIA = {"vision": "image", "audio": "audio"}


class PaperLLM:
    worker = Worker()

    def __init__(self, model: str, **arguments: Any) -> None:
        if model == "broken":
            raise SystemExit("no such model")
        self.arguments = arguments
        self.accepted = 10
        self.forgot: list[str] = []
        self.asked: list[Any] = []
        self.pooling_task = {"pooling": "classify", "pooling odd": "plugin"}.get(model)
        self.llm_engine = SimpleNamespace(
            model_config=config_of(model),
            engine_core=SimpleNamespace(shutdown=lambda: None),
            reset_encoder_cache=lambda: self.forgot.append("encoded"),
            get_supported_tasks=lambda: ("plugin",),
        )
        info = SimpleNamespace(allowed_mm_limits={MEDIA.get(model, ""): 1, "video": 1})
        dummy = SimpleNamespace(get_dummy_text=lambda counts: f"<{next(iter(counts))}>")
        processor = SimpleNamespace(info=info, dummy_inputs=dummy)
        self.renderer = SimpleNamespace(get_mm_processor=lambda: processor)

    def reset_prefix_cache(self) -> None:
        self.forgot.append("prefixes")

    def reset_mm_cache(self) -> None:
        self.forgot.append("media")

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(encode=lambda text, add_special_tokens: [len(text)])

    def encode(self, inputs: Any, pooling_task: str, use_tqdm: bool) -> list[Any]:
        data = torch.tensor([0.25, 0.75])
        return [SimpleNamespace(outputs=SimpleNamespace(data=data)) for _ in inputs]

    def score(self, query: str, texts: list[str], use_tqdm: bool) -> list[Any]:
        return [SimpleNamespace(outputs=SimpleNamespace(score=0.5)) for _ in texts]

    def collective_rpc(self, method: str | Callable[..., Any], args: Any = ()) -> list[Any]:
        found = getattr(self.worker, method) if isinstance(method, str) else method
        return [found(*args) if isinstance(method, str) else found(self.worker, *args)]

    def get_metrics(self) -> list[Any]:
        counter = SimpleNamespace(name="vllm:spec_decode_num_accepted_tokens", value=self.accepted)
        return [counter, SimpleNamespace(name="vllm:a_vector", values=[1])]

    def generate(self, inputs: Any, params: Any, use_tqdm: bool) -> list[Any]:
        self.accepted += 3
        self.asked += inputs
        logprobs = [{7: SimpleNamespace(logprob=-0.5)}] * params.max_tokens
        answer = SimpleNamespace(token_ids=[7] * params.max_tokens, logprobs=logprobs)
        return [SimpleNamespace(outputs=[answer]) for _ in inputs]


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> None:
    def engine_args(model: str, **more: Any) -> Any:
        if model == "unknown":
            raise ValueError(
                "1 validation error\n  Value error, no such architecture. Known: A, B\n"
            )
        return SimpleNamespace(create_model_config=lambda: config_of(model))

    def tokenizer_from(config: Any) -> None:
        if "bare" in config.tokenizer:
            raise OSError("nothing there")

    contents: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": PaperLLM, "SamplingParams": SimpleNamespace},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"EngineArgs": engine_args},
        "vllm.tokenizers": {"cached_tokenizer_from_config": tokenizer_from},
    }
    for name, content in contents.items():
        module: Any = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def engine(paper: None, tmp_path: Path) -> Iterator[Engine]:
    ours, its = multiprocessing.Pipe()
    living = Thread(target=attend, args=(its, {"model": "tiny"}))
    living.start()
    engine = Engine(ours, tmp_path / "log", 30)
    engine.greet()
    yield engine
    engine.close()
    living.join()
    its.close()


def test_a_process_that_starts_engines_does_not_import_vllm_itself() -> None:
    # What vLLM finds out at its import, such as whether torchvision is there, is the engine's.
    script = (
        "import sys, netloader.vllm_plugin.inspect.parity.engine; sys.exit('vllm' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_it_says_what_vllm_resolved(engine: Engine) -> None:
    assert engine.facts == {"dtype": "bfloat16", "quantization": "none"}


def test_it_generates_and_counts_only_the_drafts_of_this_time(engine: Engine) -> None:
    for _ in range(2):
        said = engine.tell(do="generate", prompts=[(1, 2), (3,)], tokens=2)
        assert said == ([[7, 7], [7, 7]], [[-0.5, -0.5], [-0.5, -0.5]], (0, 3))


def test_it_shows_what_every_model_of_every_rank_holds(engine: Engine) -> None:
    (rank,) = engine.tell(do="inventory")
    assert set(rank) == {"target", "draft"}
    assert list(rank["target"].tensors) == ["embed.weight"]
    assert rank == holdings(PaperLLM.worker)


def test_a_failing_command_is_answered_and_the_next_one_is_heard(engine: Engine) -> None:
    with pytest.raises(EngineError, match="AttributeError"):
        engine.tell(do="rpc", method="dance")
    with pytest.raises(EngineError, match="unknown command"):
        engine.tell(do="nothing")
    assert engine.tell(do="rpc", method="reset_weights") == [None]


def test_an_engine_that_does_not_start_says_so(paper: None, tmp_path: Path) -> None:
    ours, its = multiprocessing.Pipe()
    with ours, its:
        attend(its, {"model": "broken"})
        with pytest.raises(EngineError, match="SystemExit: no such model"):
            Engine(ours, tmp_path / "log", 30).greet()


def test_a_model_that_vllm_does_not_take_is_refused_in_a_sentence(
    paper: None, tmp_path: Path
) -> None:
    ours, its = multiprocessing.Pipe()
    with ours, its:
        attend(its, {"model": "unknown"})
        with pytest.raises(EngineError) as caught:
            Engine(ours, tmp_path / "log", 30).greet()
    said = "vLLM does not take this model as it is: no such architecture. A model with code"
    assert caught.value.reason.startswith(said)
    assert "trust_remote_code" in caught.value.reason


def test_an_error_is_one_line_of_some_length() -> None:
    assert sentence(ValueError("one\n\n  two")) == "ValueError: one two"
    assert len(sentence(ValueError("x" * 5000))) < 700


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("INFO\nModuleNotFoundError: No module named 'x'\nValueError: b\n", "No module named 'x'"),
        ("(EngineCore pid=3) ERROR 11-26 [a.py:1] torch.OutOfMemoryError: no\n", "torch.OutOfM"),
        ("ValueError: b\n", ""),
        ("nothing", ""),
    ],
)
def test_the_first_error_of_a_log_is_the_cause(log: str, cause: str) -> None:
    found = EngineError("ValueError: b", log).cause
    assert cause in found
    assert bool(cause) is bool(found)


@pytest.mark.parametrize(("model", "why"), [("pooling bare", "is a pooling model")])
def test_a_missing_tokenizer_is_named_with_what_to_do(paper: None, model: str, why: str) -> None:
    with pytest.raises(UnanswerableError) as caught:
        settle({"model": model})
    assert "'pooling bare' has no tokenizer that loads (OSError)" in str(caught.value)
    assert why in str(caught.value)
    assert "add its tokenizer files" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "skips", "length"),
    [("tiny", True, 128), ("pooling", False, 128), ("vision", False, 1024)],
)
def test_an_engine_has_what_its_model_needs(
    paper: None, model: str, skips: bool, length: int
) -> None:
    settled = settle({"model": model})
    assert (settled["skip_tokenizer_init"], settled["max_model_len"]) == (skips, length)
    assert settle({"model": model, "max_model_len": 7})["max_model_len"] == 7


def test_a_pooling_model_is_asked_for_vectors_and_scores(paper: None) -> None:
    said = ask(PaperLLM("pooling"), [(1, 2), (3,)], 2)
    assert said.asked == ("classify (tokens)", "score (pairs of text)")
    assert said.outputs["classify of prompt 0"].endswith(": 0.25, 0.75, ...")
    assert said.outputs["score of pair 1"] == "0.5"
    assert not said.tokens


def test_a_pooling_task_that_cannot_be_asked_is_named(paper: None) -> None:
    with pytest.raises(UnanswerableError, match="pooling tasks are plugin"):
        ask(PaperLLM("pooling odd"), [(1,)], 2)


def test_a_model_that_sees_is_asked_with_and_without_a_picture(paper: None) -> None:
    llm = PaperLLM("vision")
    said = ask(llm, [(1, 2)], 2)
    assert said.asked == ("generate (tokens, image)",)
    text, picture = llm.asked
    assert text == {"prompt_token_ids": [1, 2]}
    assert picture["prompt_token_ids"] == [len("<image>"), 1, 2]
    assert picture["multi_modal_data"]["image"].size == (64, 64)
    assert llm.forgot == ["prefixes", "media", "encoded"]


def test_an_encoder_that_hears_is_asked_with_a_sound_only(paper: None) -> None:
    llm = PaperLLM("audio")
    assert ask(llm, [(1, 2)], 2).asked == ("generate (audio)",)
    (sound,) = llm.asked
    samples, hertz = sound["multi_modal_data"]["audio"]
    assert (len(samples), hertz) == (8000, 16000)


def test_a_model_that_remembers_its_folder_is_no_other_model() -> None:
    worker = Worker()
    worker.target.path, worker.target.name = "/here", "here"  # type: ignore[assignment]
    scalars = holdings(worker)["target"].scalars
    assert (scalars["path"], scalars["name"]) == (HERE, "here")


@pytest.mark.parametrize("part", ["embed", "heads", "tail"])
def test_a_shifted_part_is_other_and_comes_back(part: str) -> None:
    """Also a head that hangs in a dict, outside the tree, and a view of what is shifted too."""
    worker = Worker()
    target: Any = worker.target
    target.heads = {"embed": nn.Linear(3, 2)}
    target.tail = nn.Linear(3, 2)
    target.tail.view = target.tail.weight.detach()[1:]
    target.tail.cpu_linear = lambda x, weight, bias: x
    before = digest(take(target))
    shift(worker, part, 1)
    after = digest(take(target))
    changed = {path for path in before if before[path] != after[path]}
    assert changed
    assert all(path.startswith(part) for path in changed)
    moved = target.tail.cpu_linear(torch.arange(3), None, None).tolist()
    assert moved == ([2, 0, 1] if part == "tail" else [0, 1, 2])
    shift(worker, part, -1)
    assert digest(take(target)) == before
    assert target.tail.cpu_linear(torch.arange(3), None, None).tolist() == [0, 1, 2]


def test_erasing_a_draft_leaves_its_target_alone() -> None:
    worker = Worker()
    before = worker.target.get_parameter("embed.weight").clone()
    erase(worker, "draft")
    assert not worker.draft.get_parameter("fc.weight").any()
    assert not worker.draft.fc.cpu_linear(torch.ones(2), None, None).any()  # type: ignore[operator, union-attr]
    assert worker.target.get_parameter("embed.weight").equal(before)
    erase(worker, "target")
    assert worker.reset == 1


def test_the_command_says_which_engine_did_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(arguments: Any, log: Path, patience_s: float) -> Any:
        why = f"cannot load {arguments['model']} as {arguments['dtype']}"
        raise EngineError(why, "KeyError: 'x'\n" if log.parent.name == "l" else "")

    monkeypatch.setattr(command, "own_process", fails)
    assert command.main([str(tmp_path), "--dtype", "float32"]) == 1
    said = capsys.readouterr().err
    assert f"cannot load {tmp_path} as float32\nTo keep what the engines print" in said
    assert command.main([str(tmp_path), "--dtype", "float32", "--logs", str(tmp_path / "l")]) == 1
    said = capsys.readouterr().err
    assert "The first error in the engine's log: KeyError: 'x'" in said
    assert f"What the engines printed is in {tmp_path / 'l'}." in said
    assert (tmp_path / "l").is_dir()


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ({"controls": ("x",)}, 0),
        ({"controls": ("x",), "unnoticed": ("x",)}, 1),
        ({"controls": ("x",), "answers": False}, 1),
        ({"refusal": "x"}, 1),
    ],
)
def test_the_command_succeeds_only_when_both_are_identical(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    found: dict[str, Any],
    code: int,
) -> None:
    asked: list[Case] = []

    def examine(case: Case, *_: Any) -> Row:
        asked.append(case)
        return Row(case.model, "bfloat16", "none", "-", differences=("here",), **found)

    monkeypatch.setattr(command, "examine", examine)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda model: str(tmp_path))
    given = ["org/model", "--load-only", "--tensor-parallel-size", "2", "--extra", '{"LANES": 1}']
    given += ["--engine", '{"runner": "pooling"}', "--client-folder", str(tmp_path)]
    assert command.main(given) == code
    options = {"tensor_parallel_size": 2, "runner": "pooling"}
    assert asked == [Case("org/model", tmp_path, options, {"LANES": 1}, 0, tmp_path)]
    assert capsys.readouterr().out.endswith("here\n")
