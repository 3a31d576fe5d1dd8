"""The simulator's call log: what was called in CANN, in order, by process.

`python -m tests.npu.trace [MODEL]` moves a model of models.py between two processes, each with a
simulated NPU of its own, and shows what either asked of CANN for it. (10,000 small tensors, unless
a model is named.)
"""

import math
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

MOVING: Final = frozenset(
    {"HcclBatchSendRecv", "HcclSend", "HcclRecv", "HcclBroadcast", "HcclAllReduce", "HcclAllGather"}
)
"""Calls that start a collective or a point-to-point operation."""
CREATING: Final = frozenset({"HcclCommInit"})
CREATED: Final = frozenset({"HcclCommInit.done"})
DESTROYING: Final = frozenset({"HcclCommDestroy"})
ASKING: Final = frozenset({"HcclGetCommAsyncError", "aclrtQueryEventStatus", "aclrtStreamQuery"})
"""What is asked again and again while something is under way."""


class Call(NamedTuple):
    """One line of the log."""

    at: float
    pid: int
    tid: int
    name: str
    details: str

    def number(self, word: str) -> int:
        """A number among the details: `word=17`."""
        found = re.search(rf"\b{word}=(-?\d+)", self.details)
        assert found, f"{self.name} says no {word}: {self.details!r}"
        return int(found[1])


class Trace:
    """A log that is still written to; reading starts where the object was made."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._start = self._path.stat().st_size if self._path.exists() else 0

    def calls(self, pid: int | None = None) -> Iterator[Call]:
        """All calls since, of one process or of all."""
        if not self._path.exists():
            return
        with self._path.open() as lines:
            lines.seek(self._start)
            for line in lines:
                if not line.endswith("\n"):  # it is being written
                    return
                at, owner, thread, name, *details = line.rstrip("\n").split(" ", 4)
                if pid in (None, int(owner)):
                    yield Call(float(at), int(owner), int(thread), name, " ".join(details))

    def of(self, names: Iterable[str], pid: int | None = None) -> list[Call]:
        """The calls with one of these names."""
        wanted = frozenset(names)
        return [call for call in self.calls(pid) if call.name in wanted]

    def communicators(self, pid: int) -> list[tuple[float, float]]:
        """When each communicator of a process began, and when it was gone (or is not: inf)."""
        begun: dict[int, float] = {}
        spans: list[tuple[float, float]] = []
        for call in self.of((*CREATING, *CREATED, *DESTROYING), pid):
            number = call.number("comm")
            if call.name in CREATING:
                begun[number] = call.at
            elif number in begun and (call.name in DESTROYING or call.number("result")):
                spans.append((begun.pop(number), call.at))
        return [*spans, *((at, math.inf) for at in begun.values())]


def main(model: str) -> None:
    """Transfer a model once, and count what the server's sending thread asked of CANN."""
    import tests.npu.simulator  # noqa: F401 - before torch is, which netloader imports
    from tests.npu.topology import Cast, served

    with ExitStack() as stack:
        path = f"{stack.enter_context(tempfile.TemporaryDirectory())}/trace"
        os.environ["SIM_CANN_TRACE"] = path
        cast = Cast(stack, path)
        server = cast.server(model=model, segment_mib=64)
        client = cast.client(server)
        outcome = served(client, server)
        for role, peer in (("server", server), ("client", client)):
            show(role, cast.trace, peer.pid)
        print(f"{outcome['nbytes']:,} bytes in model {model!r}, verified")


def show(role: str, trace: Trace, pid: int) -> None:
    """The calls of the threads that used HCCL, in the order in which each was first used."""
    calls = list(trace.calls(pid))
    threads = {call.tid for call in calls if call.name in MOVING}
    counted: dict[str, list[Call]] = {}
    for call in calls:
        if call.tid in threads and call.name not in ASKING:
            counted.setdefault(call.name, []).append(call)
    print(f"{role}, process {pid}:")
    for name, them in counted.items():
        print(f"  {len(them):5} x {name:<24} {them[0].details}")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["crumbs"])
