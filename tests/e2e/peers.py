"""Servers and clients as real processes: `python -m tests.e2e.peers SPEC`, JSON lines both ways."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from netloader.io import ClientOptions, Deadlines, Outcome, ServerOptions, fill, serve
from netloader.io.weights import memory_of
from netloader.log import capture

ROOT = Path(__file__).parents[2]
IDENTITY = {"model": "peers"}
MIB = 1 << 20


def build(seed: int, mib: int) -> nn.Module:
    """A model of `mib` MiB in tensors of three sizes; seed 0 is all zero."""
    module = nn.Module()
    sizes = [8 * MIB] * (mib // 9) + [MIB] * (mib - mib // 9 * 8 - 1) + [4096] * 256
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


def status(field: str) -> int:
    """A field of /proc/self/status, in KiB or as a count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise KeyError(field)


def say(**words: Any) -> None:
    """One line to the test."""
    print(json.dumps(words), flush=True)


def act_as_server(spec: dict[str, Any]) -> None:
    """Serve until standard input ends; every line asks how things are."""
    module = build(spec["seed"], spec["mib"])
    options = ServerOptions(
        segment_bytes=spec["segment_mib"] * MIB, deadlines=Deadlines(stall_s=spec["stall_s"])
    )
    with capture() as lines, serve(module, IDENTITY, options=options) as server:
        say(endpoint=str(server.endpoint), digest=digest(module))
        for _ in sys.stdin:
            closed = [x for x in lines if x["event"] == "netloader.session.closed"]
            say(
                sent=[x["netloader.transfer.bytes"] for x in closed],
                threads=threading.active_count(),
                files=len(list(Path("/proc/self/fd").iterdir())),
            )


def act_as_client(spec: dict[str, Any]) -> None:
    """Fill a model from the sources, telling how far it is."""
    module = build(0, spec["mib"])
    told: list[int] = []

    def report(done: int, total: int) -> None:
        if not told and done >= total * spec["tell_at"]:
            told.append(done)
            say(halfway=done)

    options = ClientOptions(
        transports=(spec["transport"],), report=report, deadlines=Deadlines(stall_s=spec["stall_s"])
    )
    Path("/proc/self/clear_refs").write_text("5")  # start the peak of resident memory anew
    before = status("VmRSS")
    outcome = fill(module, spec["sources"], IDENTITY, options)
    say(extra_kib=status("VmHWM") - before, digest=digest(module), **summary(outcome))


def summary(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON."""
    attempts = [
        {"source": str(a.source), "reason": a.reason.value, "nbytes": a.nbytes}
        for a in outcome.attempts
    ]
    return {"ok": outcome.ok, "nbytes": outcome.nbytes, "attempts": attempts}


class Peer:
    """A process that acts as one of the two; a context manager."""

    def __init__(self, role: str, **spec: Any) -> None:
        defaults = {"seed": 1, "mib": 1024, "segment_mib": 16, "stall_s": 15.0, "tell_at": 2.0}
        words = json.dumps({"role": role, **defaults, **spec})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.peers", words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )

    def hear(self) -> dict[str, Any]:
        """The next line it says."""
        assert self.process.stdout is not None
        words: dict[str, Any] = json.loads(self.process.stdout.readline())
        return words

    def ask(self) -> dict[str, Any]:
        """How things are, at a server."""
        assert self.process.stdin is not None
        self.process.stdin.write("how are you\n")
        self.process.stdin.flush()
        return self.hear()

    def states(self) -> Iterator[dict[str, Any]]:
        """How things are, again and again for some time."""
        pause = threading.Event()
        for _ in range(200):
            yield self.ask()
            pause.wait(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    orders = json.loads(sys.argv[1])
    (act_as_server if orders["role"] == "server" else act_as_client)(orders)
