"""One `vllm serve`, on a machine of its own, with the moments of its start."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.start.phases import API, TOKEN, Phases
from demo.servers import DIRECT, DemoError, Server, free_ports, start_server, stop_server

CACHE_BYTES: Final = 64 << 20
LOOK_S: Final = 0.02
"""How often the log is read: the moments are exact to that."""
START_S: Final = 300.0
PROMPT: Final = "word1 word2 word3"
COMMON: Final = (
    *("--host", "127.0.0.1", "--max-model-len", "256", "--max-num-seqs", "8"),
    *("--served-model-name", "bench", "--kv-cache-memory-bytes", str(CACHE_BYTES)),
)
VLLM: Final = (sys.executable, "-m", "vllm.entrypoints.cli.main")


@dataclass(slots=True)
class Start:
    """How one start went: seconds of each phase, in order, and of the whole."""

    phases: dict[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class Mode:
    """Whether vLLM compiles, and how."""

    name: str
    words: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


EAGER: Final = Mode("eager", ("--enforce-eager",))
COMPILED: Final = Mode("compiled", (), {"VLLM_USE_AOT_COMPILE": "0"})
"""Without vLLM's AOT cache: this vLLM cannot load it on a CPU, and would compile at each start."""


class Machine:
    """Where an instance keeps what it leaves for its next start; empty at first.

    A folder that is HOME, the root of all caches, and the place of temporary files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("home", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        """What points there."""
        places = {"HOME": "home", "XDG_CACHE_HOME": "home/.cache", "TMPDIR": "tmp"}
        places["VLLM_CACHE_ROOT"] = "home/.cache/vllm"
        return {name: str(self.folder / place) for name, place in places.items()}


class Instance:
    """One server and its log."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._phases = Phases(server.log, server.began)

    def wait(self, ready: Callable[[], bool]) -> None:
        """Note the moments of the log until `ready`.

        Raises:
            DemoError: it ended, or took too long.
        """
        while not ready():
            if self._server.process.poll() is not None or self._now() > START_S:
                raise DemoError(f"{self._server.name} did not start\n{self._server.tail()}")
            self._phases.look()
            time.sleep(LOOK_S)
        self._phases.look()
        self._phases.end(API)
        self._server.ready_after_s = self._now()

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

    def waiting(self) -> Start:
        """How the start went so far."""
        return Start(self._phases.seconds(), self._server.ready_after_s)

    def started(self) -> Start:
        """How the start went, which ends with the first token."""
        self._first_token()
        self._phases.end(TOKEN)
        return Start(self._phases.seconds(), self._now())

    def filled(self, token: str) -> Start:
        """Fill it, and have its first token: how long that took, by phases."""
        began = time.monotonic()
        told = self._server.post("/netloader/fill", {}, {"Authorization": f"Bearer {token}"})
        answered = time.monotonic() - began
        (rank,) = told["ranks"]
        phases = {"receive": float(rank["receive_s"]), "write": float(rank["write_s"])}
        phases["offer, API"] = answered - sum(phases.values())
        self._first_token()
        total = time.monotonic() - began
        return Start({**phases, TOKEN: total - answered}, total)

    def _now(self) -> float:
        """Seconds since its process was started."""
        return time.monotonic() - self._server.began

    def _first_token(self) -> None:
        asked = {"model": "bench", "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
        self._server.post("/v1/completions", asked)


@contextmanager
def serving(name: str, command: Sequence[str], machine: Machine, mode: Mode) -> Iterator[Instance]:
    """A command that starts a server on a machine, from its start to the end of the block."""
    (port,) = free_ports(1)
    words = [*command, "--port", str(port), *COMMON, *mode.words]
    log = machine.folder / f"{name}.log"
    server = start_server(name, words, port, log, None, {**machine.environment, **mode.environment})
    try:
        yield Instance(server)
    finally:
        stop_server(server)
