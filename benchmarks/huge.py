"""The same host with memory in huge pages on both sides: `python -m benchmarks.huge`.

Each side has 226 tensors of 1 GiB in one mapping that it asks the kernel to keep in pages of 2 MiB
(`MADV_HUGEPAGE`) and has touched. How much of it really is in such pages is read from smaps.
"""

import ctypes
import mmap
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from benchmarks.contest import seconds
from benchmarks.figures import HugePages
from benchmarks.sender import HOST, Sender, Stage, sending
from benchmarks.workload import GIB, IDENTITY, LARGE, MIB, named
from netloader import ClientOptions, Endpoint, Server, ServerOptions, fill, serve

HUGE: Final = 2 * MIB
SEALED_S: Final = 120.0
WAY: Final = "netloader shm, xxh3_128"
COPY: Final = "memcpy"


class Block:
    """Named tensors of the workload in one mapping of huge pages."""

    def __init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, LARGE.nbytes + 2 * HUGE, flags=flags)
        self._map.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(self._map, dtype=torch.uint8)
        self.begin = -(-whole.data_ptr() // HUGE) * HUGE
        start = self.begin - whole.data_ptr()
        self.bytes = whole[start : start + LARGE.nbytes]
        self.bytes.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the workload, one behind the other."""
        found, at = dict[str, Tensor](), 0
        for name, like in named(LARGE.build()):
            part = self.bytes[at : at + like.nbytes]
            found[name] = part.view(like.dtype).view(like.shape)
            at += like.nbytes
        return found

    def huge_share(self) -> float:
        """The share of it that is in huge pages now."""
        inside = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            head = line.split()
            if "-" in head[0] and not head[0].endswith(":"):
                begin, end = (int(each, 16) for each in head[0].split("-"))
                inside = begin <= self.begin < end
            elif inside and head[0] == "AnonHugePages:":
                return min(1.0, int(head[1]) * 1024 / LARGE.nbytes)
        return 0.0


def offered(stage: Stage) -> int:
    """The port of a server whose tensors are in huge pages."""

    def make() -> Server:
        block = stage.once("block", Block)
        block.bytes.random_(generator=torch.Generator().manual_seed(1))
        options = ServerOptions(transports=("shm",), max_clients=1, digest="xxh3_128")
        server = serve(block.tensors(), IDENTITY, HOST, options=options)
        if not server.wait_ready(SEALED_S):
            raise RuntimeError("the digests were not ready in time")
        return server

    return stage.once("huge", make).endpoint.port


def huge_pages(rounds: int, say: Callable[[str], None]) -> list[HugePages]:
    """`memcpy` and netloader in turns."""
    say("same host, huge pages")
    with sending(LARGE) as sender:
        return _measured(sender, rounds)


def _measured(sender: Sender, rounds: int) -> list[HugePages]:
    port = sender.do(offered)
    ours, theirs = Block(), Block()
    tensors = ours.tensors()
    options = ClientOptions(transports=("shm",), digest="xxh3_128")

    def copy() -> None:
        for start in range(0, LARGE.nbytes, MIB):
            here, there = ours.begin + start, theirs.begin + start
            ctypes.memmove(here, there, min(MIB, LARGE.nbytes - start))

    def receive() -> None:
        outcome = fill(tensors, [Endpoint(HOST, port)], IDENTITY, options)
        if not outcome.ok:
            raise RuntimeError(outcome.history())

    ways = {COPY: copy, WAY: receive}
    took: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, work in ways.items():
            took[way].append(seconds(work))
    share = ours.huge_share()
    return [
        HugePages(way, [LARGE.nbytes / GIB / each for each in times[1:]], share)
        for way, times in took.items()
    ]


def main() -> None:
    """Measure, and print a line for each."""
    for row in huge_pages(4, print):
        rate = statistics.median(row.rates)
        print(f"{row.way:<28}{rate:>7.2f} GiB/s, {row.huge_share:.0%} in huge pages")


if __name__ == "__main__":
    main()
