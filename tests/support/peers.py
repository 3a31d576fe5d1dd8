"""Servers and clients as real processes, forked from one that has its imports done.

A peer may live in a network namespace of its own, and may halt when its session enters a state:
stop or kill itself, or wait until it is told to go on. All times are of the system-wide monotonic
clock, so those of two processes can be compared.
"""

import contextlib
import ctypes
import gc
import hashlib
import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias

import torch
from torch import nn
from torch.distributed import distributed_c10d

from netloader.io import ClientOptions, Deadlines, Outcome, Server, ServerOptions, fill, serve
from netloader.io.clock import monotonic
from netloader.io.cores import default_lanes
from netloader.io.memory import memory_of
from tests.support.hosts import enter
from tests.unit.io.helpers import sealed

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

IDENTITY = {"model": "peers"}
MIB = 1 << 20
PATIENCE_S = 60.0
"""How long a test waits for a word of a peer, where no deadline is tested."""

FORKS: Final = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.peers", "tests.e2e.hostile_clients"])

PR_SET_PDEATHSIG: Final = 1
MOST_CLOSED: Final = 20
"""Sessions whose end a peer remembers; of all it counts the reasons."""

How = Literal["stop", "kill", "wait"]
Words = dict[str, Any]
Line: TypeAlias = "Connection[Any, Any]"


@dataclass(frozen=True, slots=True)
class Halt:
    """Where a peer halts: on entering a state, or at a share of the bytes (clients only)."""

    how: How
    state: str = ""
    share: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a peer is to be."""

    seed: int = 1
    mib: int = 64
    tensors: int = 0
    segment_mib: int = 4
    deadlines: Deadlines = field(default_factory=Deadlines)
    network: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    max_clients: int = 2
    sources: tuple[str, ...] = ()
    transports: tuple[str, ...] = ("tcp",)
    lanes: int = field(default_factory=default_lanes)
    rails: tuple[str, ...] = ()
    parallel: int = 1
    halt: Halt | None = None


CHANCES = 3


def with_chances(sources: tuple[str, ...]) -> tuple[str, ...]:
    """Sources of which the last, which is well, is asked again: one of the two may stand still by
    chance for longer than its deadlines."""
    return sources + sources[-1:] * (CHANCES - 1)


def build(seed: int, spec: Spec) -> nn.Module:
    """A model of `mib` MiB in tensors of three sizes, and tiny ones; seed 0 is all zero."""
    module, mib = nn.Module(), spec.mib
    sizes = [8 * MIB] * (mib // 9) + [MIB] * (mib - mib // 9 * 8 - 1) + [4096] * 256
    sizes += [64] * spec.tensors
    for number, size in enumerate(sizes):
        tensor = torch.arange(size // 4, dtype=torch.int32).mul_(seed * 2 * (number + 1))
        module.register_buffer(f"t{number}", tensor.add_(seed))
    return module


def digest(module: nn.Module) -> str:
    """SHA-256 over all bytes."""
    total = hashlib.sha256()
    for tensor in module.buffers():
        total.update(memory_of(tensor))
    return total.hexdigest()


def status(field_: str) -> int:
    """A field of /proc/self/status, in KiB or as a count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field_:
            return int(value.split()[0])
    raise KeyError(field_)


def die_with_parent() -> None:
    """Be killed when the process that forked this one ends, even while frozen."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def possessions() -> Words:
    """What this process holds, as the kernel counts it, when everything is returned to it."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # glibc keeps freed memory, others may not
        ctypes.CDLL(None).malloc_trim(0)
    return {
        "threads": status("Threads"),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "kib": status("VmRSS"),
        "groups": len(distributed_c10d._world.pg_map),
    }


class Watch(logging.Handler):
    """Reads this process's log: how sessions ended, when sources were tried, where to halt."""

    def __init__(self, say: Callable[..., None], halt: Halt | None) -> None:
        super().__init__()
        self.closed: list[Words] = []
        self.reasons: Counter[str] = Counter()
        self.tried: list[float] = []
        self.errors = 0
        self.go_on = threading.Event()
        self._say = say
        self._halt = halt
        logger = logging.getLogger("netloader")
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        fields: Words = getattr(record, "netloader", {})
        self.errors += record.levelno >= logging.ERROR
        match fields.get("event"):
            case "netloader.session.closed":
                end = {
                    word: fields[f"netloader.{word}"] for word in ("outcome", "reason", "detail")
                }
                sent = fields["netloader.transfer.bytes"]
                self.reasons[end["reason"]] += 1
                if len(self.closed) < MOST_CLOSED:
                    self.closed.append({**end, "sent": sent, "at": monotonic()})
            case "netloader.source.tried":
                self.tried.append(monotonic())
            case "netloader.session.transition":
                self.reached(state=fields["netloader.state.to"])

    def reached(self, state: str = "", share: float = 0.0) -> None:
        """Halt, if this is the place."""
        halt = self._halt
        if halt is None or (state != halt.state and share < halt.share):
            return
        self._halt = None
        self._say(reached=state or share, at=monotonic())
        if halt.how == "wait":
            self.go_on.wait()
        else:
            # Sent to this thread, so that it does not go on for a moment while another is stopped.
            number = signal.SIGSTOP if halt.how == "stop" else signal.SIGKILL
            signal.pthread_kill(threading.get_ident(), number)


Role: TypeAlias = Callable[["Spec", "Line", Callable[..., None], Watch], None]
"""What a process does: with its specification, its line to the test, and its log."""


def run(role: Role, spec: Spec, line: Line) -> None:
    """Be a peer; the first thing a process does."""
    lock = threading.Lock()

    def say(**words: Any) -> None:
        with lock:
            line.send(words)

    die_with_parent()
    if spec.network:
        enter(spec.network)
    watch = Watch(say, spec.halt)
    role(spec, line, say, watch)


def act_as_server(spec: Spec, line: Line, say: Callable[..., None], watch: Watch) -> None:
    """Serve until hung up on."""
    empty_kib = possessions()["kib"]
    module: nn.Module | None = build(spec.seed, spec)
    bare = {**possessions(), "kib": empty_kib}
    options = ServerOptions(
        segment_bytes=spec.segment_mib * MIB,
        deadlines=spec.deadlines,
        max_clients=spec.max_clients,
        rails=spec.rails,
    )
    assert module is not None
    server: Server = sealed(serve(module, IDENTITY, spec.host, spec.port, options))
    say(endpoint=str(server.endpoint), digest=digest(module), bare=bare)
    for order in orders(line):
        match order:
            case "go on":
                watch.go_on.set()
            case "close":
                server.close()
                module = None
                say(closed=True)
            case _:
                said = {"closed": watch.closed, "reasons": dict(watch.reasons)}
                say(**said, errors=watch.errors, **possessions())


def act_as_client(spec: Spec, line: Line, say: Callable[..., None], watch: Watch) -> None:
    """Fill a model from the sources; then say what it holds, as often as asked."""
    module = build(0, spec)
    options = ClientOptions(
        transports=spec.transports,
        lanes=spec.lanes,
        parallel=spec.parallel,
        rails=spec.rails,
        report=lambda done, total: watch.reached(share=done / total),
        deadlines=spec.deadlines,
    )
    outcomes: list[Outcome] = []

    def work() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # start the peak of resident memory anew
        before = status("VmRSS")
        begun = monotonic()
        outcomes.append(fill(module, spec.sources, IDENTITY, options))
        say(
            took=monotonic() - begun,
            extra_kib=status("VmHWM") - before,
            digest=digest(module),
            tried=watch.tried,
            **summary(outcomes[0]),
        )

    working = threading.Thread(target=work)
    working.start()
    for order in orders(line):
        if order == "go on":
            watch.go_on.set()
        else:
            working.join()
            say(digest=digest(module), errors=watch.errors, **possessions())


def orders(line: Line) -> Iterator[Any]:
    """What the test tells this process to do, until it hangs up."""
    while True:
        try:
            yield line.recv()
        except (EOFError, ConnectionError):
            os._exit(0)  # threads of a session that hangs would hold up an ordinary exit


def summary(outcome: Outcome) -> Words:
    """An outcome in plain words."""
    attempts = [
        {
            "source": str(a.source),
            "reason": a.reason.value,
            "detail": a.detail,
            "nbytes": a.nbytes,
            "seconds": {state.value: spent for state, spent in a.seconds.items()},
        }
        for a in outcome.attempts
    ]
    return {"ok": outcome.ok, "nbytes": outcome.nbytes, "attempts": attempts}


class Peer:
    """A process that acts as one of the two; a context manager."""

    def __init__(self, role: Role, spec: Spec) -> None:
        self._line, far = FORKS.Pipe()
        self.process = FORKS.Process(target=run, args=(role, spec, far), daemon=True)
        self.process.start()
        far.close()

    def hear(self, timeout_s: float = PATIENCE_S) -> Words:
        """The next thing it says."""
        assert self._line.poll(timeout_s), f"nothing heard for {timeout_s} s"
        words: Words = self._line.recv()
        return words

    def tell(self, order: object) -> None:
        """Give an order."""
        self._line.send(order)

    def ask(self, order: object = "how are you", timeout_s: float = PATIENCE_S) -> Words:
        """Give an order and hear the answer."""
        self.tell(order)
        return self.hear(timeout_s)

    def becomes(self, good: Callable[[Words], object], timeout_s: float = PATIENCE_S) -> Words:
        """How it is as soon as that is `good`."""
        end = monotonic() + timeout_s
        pause = threading.Event()
        while True:
            words = self.ask()
            if good(words):
                return words
            assert monotonic() < end, f"still so after {timeout_s} s: {words}"
            pause.wait(0.05)

    def reached(self) -> float:
        """Wait for it to halt; when it did."""
        words = self.hear()
        assert "reached" in words, words
        return float(words["at"])

    def stop(self) -> None:
        """Freeze it, and see that it is frozen."""
        self.signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        pause = threading.Event()
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            pause.wait(0.001)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self._line.close()


def serving(spec: Spec) -> tuple[Peer, Words]:
    """A server that is up, and what it said of itself. To be used as a context manager."""
    peer = Peer(act_as_server, spec)
    try:
        return peer, peer.hear()
    except BaseException:
        peer.__exit__(None, None, None)
        raise
