"""An engine in a process of its own, and the conversation with it: one answer for each command."""

import contextlib
import multiprocessing
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from netloader.errors import NetloaderError
from netloader.log import FIELDS, TEXT_FORM
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.inspect.parity.controls import models_of
from netloader.vllm_plugin.inspect.parity.questions import as_inputs, ask, generate, settle
from netloader.vllm_plugin.inspect.parity.rows import Held

Arguments = Mapping[str, Any]

ARGUMENTS: Arguments = {
    "enforce_eager": True,
    "gpu_memory_utilization": 0.4,  # two engines share the device, or the host
    "disable_log_stats": False,  # acceptance is a statistic
    "load_format": "netloader",
}
"""What every engine that is compared has in common: started fast, asked little (see `settle`)."""

FAILED = re.compile(r"^(?:\(.*?\) )?(?:ERROR .*?\] )?((?:\w+\.)*\w*Error: .{1,300})", re.MULTILINE)
"""An error at the end of a traceback, in a line of its own or of vLLM's log."""
CAUSE_CHARS = 80
"""So much of an error tells whether it is the one that was given as the reason."""

TAIL_CHARS = 6000
SENTENCE_CHARS = 600
"""vLLM lists all the architectures it knows when it does not know one."""
HERE = "(the engine's model folder)"

JOIN_S = 30.0
"""Seconds for an engine to free its memory and end."""


class EngineError(NetloaderError):
    """An engine failed, is silent or is gone.

    `reason` is a sentence; the message goes on with the end of what it printed. `cause` is
    the first error in there, '' when there is no other one.
    """

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(f"{reason}\n{log}" if log else reason)
        self.reason = reason
        first = FAILED.search(log)
        self.cause = first[1] if first and first[1][:CAUSE_CHARS] not in reason else ""


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
        """Run a command (see `attend`), and return its answer."""
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
            raise EngineError(answer["error"], self.log()[-TAIL_CHARS:])
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
    """Have this process, and all it starts, print into a file, our lines with their fields."""
    os.environ[TEXT_FORM] = FIELDS
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def attend(connection: Connection, arguments: Arguments) -> None:
    """Be an engine: start, say so, then answer commands until the other end hangs up.

    Commands: `ask` and `generate` (prompts, tokens; see `questions`), `inventory`, and `rpc`: any
    method of vLLM's workers, or a function that takes a worker. A failing command is answered with
    its error, in a sentence; the log has the traceback.
    """
    try:
        from vllm import LLM

        llm: Any = LLM(**settle(arguments))
    except BaseException as error:  # noqa: BLE001 - vLLM may raise anything; the caller gets it
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
            case {"do": "ask", "prompts": prompts, "tokens": tokens}:
                return ask(llm, prompts, tokens)
            case {"do": "generate", "prompts": prompts, "tokens": tokens}:
                said = generate(llm, as_inputs(prompts), tokens)
                return said.tokens, said.logprobs, said.drafts
            case {"do": "inventory"}:
                return llm.collective_rpc(holdings)
            case {"do": "rpc", "method": method, **rest}:
                return llm.collective_rpc(method, **rest)
    except Exception as error:  # noqa: BLE001 - as above
        return _failure(error)
    return {"error": f"unknown command {command}"}


def _failure(error: BaseException) -> dict[str, str]:
    traceback.print_exception(error)
    own = isinstance(error, NetloaderError)
    return {"error": str(error) if own else sentence(error)}


def sentence(error: BaseException) -> str:
    """An error in one line, however many its message has."""
    lines = (line.strip() for line in str(error).splitlines())
    text = f"{type(error).__name__}: {' '.join(line for line in lines if line)}"
    return text if len(text) <= SENTENCE_CHARS else f"{text[:SENTENCE_CHARS]} ..."


def holdings(worker: Any) -> dict[str, Held]:
    """What a worker's models hold, by role."""
    folder = str(worker.model_config.model)
    return {role: _held(model, folder) for role, model in models_of(worker).items()}


def _held(model: Any, folder: str) -> Held:
    """The two engines load from two folders, and some models remember from where."""
    found = inventory.take(model)
    scalars = {path: HERE if value == folder else value for path, value in found.scalars.items()}
    return Held(inventory.digest(found), scalars, found.opaque, inventory.sealed(found))
