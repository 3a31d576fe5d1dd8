"""The gate of CI: netloader over tcp must keep a share of a plain socket, both in the same minute.

`python -m benchmarks.gate`. Each try takes the two in turns (plain, netloader, plain, netloader),
and the best pair counts: whatever else the machine does can only lower a share. A try that is too
low is followed by others, so a busy moment fails no build, and a slow netloader fails every one.
"""

import sys
from dataclasses import dataclass
from typing import Final

from benchmarks.contenders.base import Contender
from benchmarks.contenders.own import Netloader, algorithms
from benchmarks.contenders.sockets import PlainSocket
from benchmarks.contest import seconds
from benchmarks.sender import Sender, sending
from benchmarks.target import Memory, Target
from benchmarks.workload import LARGE, Workload

LEAST: Final = {Memory.TOUCHED: 0.4, Memory.FRESH: 0.35}
"""Generous: a quiet machine reaches twice as much."""
TRIES: Final = 4
PAIRS: Final = 2


@dataclass(frozen=True, slots=True)
class Share:
    """What netloader reached of the plain socket's rate."""

    memory: Memory
    best: float
    """Of all pairs that were measured."""

    @property
    def ok(self) -> bool:
        """Whether it is enough."""
        return self.best >= LEAST[self.memory]


def shares(workload: Workload = LARGE) -> list[Share]:
    """Measure both kinds of memory."""
    ours = Netloader("tcp", algorithms()[0])
    with sending(workload) as sender:
        return [_share(sender, Target(workload, memory), ours) for memory in LEAST]


def _share(sender: Sender, target: Target, ours: Contender) -> Share:
    plain, best = PlainSocket(), 0.0
    for _ in range(TRIES):
        for _ in range(PAIRS):
            bare = seconds(plain.prepare(sender, target))
            best = max(best, bare / seconds(ours.prepare(sender, target)))
        if best >= LEAST[target.memory]:
            break
    target.free()
    return Share(target.memory, best)


def main() -> int:
    """Print a line for each kind of memory."""
    found = shares()
    for share in found:
        least, word = LEAST[share.memory], "ok" if share.ok else "too slow"
        print(
            f"{share.memory.value} memory: netloader tcp x {share.best:.2f} of a plain socket, "
            f"at least {least}: {word}",
            flush=True,
        )
    return 0 if all(share.ok for share in found) else 1


if __name__ == "__main__":
    sys.exit(main())
