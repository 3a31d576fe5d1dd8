"""One `vllm serve`, with the moments of its start."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo.servers import DIRECT, DemoError, Server, free_ports, start_server, stop_server

CACHE_BYTES: Final = 64 << 20
LOOK_S: Final = 0.02
"""How often the log is read: the moments are exact to that."""
START_S: Final = 600.0
MARKS: Final = {
    "imports": "Starting to load model",
    "load": "KV cache layout",
    "warm-up": "init engine (profile",
}
"""Phases, and what vLLM logs at the end of each."""
PROMPT: Final = "word1 word2 word3"
COMMON: Final = (
    *("--host", "127.0.0.1", "--kv-cache-memory-bytes", str(CACHE_BYTES)),
    *("--max-model-len", "256", "--max-num-seqs", "8", "--served-model-name", "bench"),
)


@dataclass(slots=True)
class Start:
    """How one start went: seconds of each phase, in order, and of the whole."""

    phases: dict[str, float]
    seconds: float


class Instance:
    """One server and its log."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._moments: dict[str, float] = {}
        self._read = 0

    def wait(self, ready: Callable[[], bool]) -> None:
        """Note the moments of the log until `ready`.

        Raises:
            DemoError: it ended, or took too long.
        """
        while not ready():
            if self._server.process.poll() is not None or self.now() > START_S:
                raise DemoError(f"{self._server.name} did not start\n{self._server.tail()}")
            self._look()
            time.sleep(LOOK_S)
        self._look()
        self._moments["API"] = self.now()

    def now(self) -> float:
        """Seconds since its process was started."""
        return time.monotonic() - self._server.began

    def healthy(self) -> bool:
        """Whether it takes requests."""
        return self._server.is_healthy()

    def waits(self) -> bool:
        """Whether it is on standby, and has done all that it does before it is filled."""
        try:
            with DIRECT.open(f"{self._server.url}/netloader/standby", timeout=5.0) as answer:
                return bool(json.load(answer)["state"] == "standby")
        except OSError:  # refused, reset or late; HTTPError is one too
            return False

    def filled(self) -> Start:
        """Fill it, and have its first token: how long that took, by phases."""
        began = time.monotonic()
        told = self._server.post("/netloader/fill", {})
        answered = time.monotonic() - began
        (rank,) = told["ranks"]
        phases = {"receive": float(rank["receive_s"]), "write": float(rank["write_s"])}
        phases["offer, API"] = answered - sum(phases.values())
        self.first_token()
        total = time.monotonic() - began
        return Start({**phases, "first token": total - answered}, total)

    def first_token(self) -> str:
        """One token, by its API."""
        asked = {"model": "bench", "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
        answer = self._server.post("/v1/completions", asked)
        return str(answer["choices"][0]["text"])

    def start(self) -> Start:
        """How the start went, which ends with the first token."""
        self.first_token()
        total = self.now()
        phases: dict[str, float] = {}
        before = 0.0
        for name in (*MARKS, "API"):
            moment = self._moments.get(name, before)
            phases[name] = moment - before
            before = moment
        phases["first token"] = total - before
        return Start(phases, total)

    def _look(self) -> None:
        """Note which lines are there by now."""
        text = self._server.log.read_text(encoding="utf-8", errors="replace")
        new, self._read = text[self._read :], len(text)
        for name, mark in MARKS.items():
            if name not in self._moments and mark in new:
                self._moments[name] = self.now()


@contextmanager
def serving(
    name: str, model: Path, words: Sequence[str], folder: Path, *, eager: bool
) -> Iterator[Instance]:
    """A `vllm serve` on a folder, from its start to the end of the block."""
    (port,) = free_ports(1)
    chosen = ("--enforce-eager",) if eager else ()
    base = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model))
    command = [*base, "--port", str(port), *COMMON, *chosen, *words]
    number = len(list(folder.glob("*.log")))
    server = start_server(name, command, port, folder / f"{number}.log", None)
    try:
        yield Instance(server)
    finally:
        stop_server(server)


def netloader(extra: Mapping[str, object]) -> tuple[str, ...]:
    """The words that choose netloader, with its fields."""
    fields = {"MODEL": "bench", "LISTEN_HOST": "127.0.0.1", **extra}
    return ("--load-format", "netloader", "--model-loader-extra-config", json.dumps(fields))
