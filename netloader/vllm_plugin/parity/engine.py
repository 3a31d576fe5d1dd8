"""An engine in a process of its own, and the conversation with it. Law: one command, one answer."""

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from netloader.errors import NetloaderError
from netloader.vllm_plugin import inventory
from netloader.vllm_plugin.parity.rows import Held

Arguments = Mapping[str, Any]

ARGUMENTS: Arguments = {
    "skip_tokenizer_init": True,  # prompts are token ids
    "enforce_eager": True,
    "max_model_len": 128,
    "kv_cache_memory_bytes": 256 << 20,  # of a large model too, this holds 128 tokens
    "gpu_memory_utilization": 0.4,  # two engines share the device, or the host
    "disable_log_stats": False,  # acceptance is a statistic
    "load_format": "netloader",
}
"""What every engine that is compared has in common: started fast, asked little."""

TAIL_CHARS = 6000
JOIN_S = 30.0
"""An engine that was told to end frees its memory first."""


class EngineError(NetloaderError):
    """An engine failed, is silent or is gone; with the end of what it printed."""


class Engine:
    """One engine, of one or more ranks, from outside."""

    def __init__(self, connection: Connection, log: Path, patience_s: float) -> None:
        self._connection = connection
        self._log = log
        self._patience_s = patience_s
        self.facts: dict[str, str] = {}

    def greet(self) -> None:
        """Wait until the engine is up.

        Raises:
            EngineError: it did not start.
        """
        self.facts = self.answer()

    def tell(self, **command: Any) -> Any:
        """Have a command carried out (see `attend`), and hear what came of it."""
        self._connection.send(command)
        return self.answer()

    def answer(self) -> Any:
        """The next answer.

        Raises:
            EngineError: it is an error, none came in time, or the engine is gone.
        """
        try:
            in_time = self._connection.poll(self._patience_s)
            answer = self._connection.recv() if in_time else {"error": "no answer in time"}
        except (EOFError, OSError):
            answer = {"error": "the engine is gone"}
        if isinstance(answer, dict) and "error" in answer:
            raise EngineError(f"{answer['error']}\n{self.log()[-TAIL_CHARS:]}")
        return answer

    def log(self) -> str:
        """Everything the engine has printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def close(self) -> None:
        """Hang up; then the engine ends."""
        self._connection.close()


@contextlib.contextmanager
def own_process(arguments: Arguments, log: Path, patience_s: float) -> Iterator[Engine]:
    """A running engine in a new process; `arguments` are those of `vllm.LLM`.

    Raises:
        EngineError: it did not start.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, its = spawn.Pipe()
    process = spawn.Process(target=_live, args=(its, arguments, str(log)))
    process.start()
    its.close()
    engine = Engine(ours, log, patience_s)
    try:
        engine.greet()
        yield engine
    finally:
        engine.close()
        process.join(JOIN_S)
        process.kill()


def _live(connection: Connection, arguments: Arguments, log: str) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # this process is the engine's own
    print_to(log)
    attend(connection, arguments)


def print_to(log: str) -> None:
    """Have this process, and all it starts, print into a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def attend(connection: Connection, arguments: Arguments) -> None:
    """Be an engine: start, say so, then answer commands until the other end hangs up.

    Commands: `generate` (prompts, tokens), `inventory`, and `rpc`: any method of vLLM's workers, or
    a function that takes a worker. A failing command is answered with its error.
    """
    try:
        from vllm import LLM

        llm: Any = LLM(**arguments)
    except BaseException as error:  # noqa: BLE001 - vLLM raises what it likes; the caller hears it
        connection.send(_failure(error))
        return
    model = llm.llm_engine.model_config
    dtype = str(model.dtype).removeprefix("torch.")
    connection.send({"dtype": dtype, "quantization": model.quantization or "none"})
    with contextlib.suppress(EOFError):
        while True:
            connection.send(_obey(llm, connection.recv()))
    llm.llm_engine.engine_core.shutdown()


def _obey(llm: Any, command: Mapping[str, Any]) -> Any:
    try:
        match command:
            case {"do": "generate", "prompts": prompts, "tokens": tokens}:
                return _generate(llm, prompts, tokens)
            case {"do": "inventory"}:
                return llm.collective_rpc(holdings)
            case {"do": "rpc", "method": method, **rest}:
                return llm.collective_rpc(method, **rest)
    except Exception as error:  # noqa: BLE001 - as above
        return _failure(error)
    return {"error": f"unknown command {command}"}


def _failure(error: BaseException) -> dict[str, str]:
    traceback.print_exception(error)
    return {"error": f"{type(error).__name__}: {error}"}


def holdings(worker: Any) -> dict[str, Held]:
    """What a worker's models hold, by role."""
    return {role: _held(model) for role, model in models_of(worker).items()}


def models_of(worker: Any) -> dict[str, Any]:
    """A worker's models by role."""
    runner = worker.model_runner
    draft = getattr(getattr(runner, "drafter", None), "model", None)
    models = {"target": runner.get_model(), "draft": draft}
    return {role: model for role, model in models.items() if model is not None}


def _held(model: Any) -> Held:
    found = inventory.take(model)
    return Held(inventory.digest(found), found.scalars, found.opaque, inventory.sealed(found))


def erase(worker: Any, role: str) -> None:
    """Set a model's weights to zero: by vLLM's `reset_weights`, where it has that (not in 0.28).

    It knows no drafts. What a draft shares with its target is left alone, and what it has packed
    away is cut off.
    """
    if role == "target" and hasattr(worker, "reset_weights"):
        worker.reset_weights()
        return
    models = models_of(worker)
    shared = {id(part) for other in models.keys() - {role} for part in models[other].modules()}
    for part in models[role].modules():
        if role == "target" or id(part) not in shared:
            for parameter in part.parameters(recurse=False):
                parameter.detach().zero_()
            if hasattr(part, "cpu_linear"):  # oneDNN's packed weight is in there, out of reach
                part.cpu_linear = _silenced(part.cpu_linear)


def _silenced(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: function(*given) * 0


def _generate(
    llm: Any, prompts: Sequence[Sequence[int]], tokens: int
) -> tuple[list[list[int]], list[list[float]], tuple[int, int]]:
    """Greedy tokens, their log-probabilities, and how many drafts were proposed and accepted."""
    from vllm import SamplingParams

    greedy = SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, logprobs=0
    )
    inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    before = _drafts(llm)
    answers = [o.outputs[0] for o in llm.generate(inputs, greedy, use_tqdm=False)]
    proposed, accepted = (now - then for now, then in zip(_drafts(llm), before, strict=True))
    chosen = [
        [at[token].logprob for at, token in zip(a.logprobs, a.token_ids, strict=True)]
        for a in answers
    ]
    return [list(a.token_ids) for a in answers], chosen, (proposed, accepted)


def _drafts(llm: Any) -> tuple[int, int]:
    """Counters since the engine started: draft tokens proposed, and accepted."""
    found = {metric.name: metric for metric in llm.get_metrics()}
    names = ("num_draft_tokens", "num_accepted_tokens")
    counters = (found.get(f"vllm:spec_decode_{name}") for name in names)
    proposed, accepted = (0 if counter is None else int(counter.value) for counter in counters)
    return proposed, accepted
