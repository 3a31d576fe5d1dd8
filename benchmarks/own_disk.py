"""What a folder of this host is worth as a source, alone and beside a peer.

`python -m benchmarks.own_disk [GIB] [ROUNDS]`: the contenders in turns, into fresh memory; medians
of seconds, the extremes, and the processor's seconds of this process. The peer is another process
of this host that sends over tcp, at no more than its rate. Cold: the kernel's cache of the folder
is dropped first.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from netloader import ClientOptions, Endpoint, ServerOptions, fill, serve
from netloader.io.own_folder import OwnFolder
from netloader.io.saving import save
from netloader.io.store.parts import open_part

IDENTITY: Final = {"model": "bench", "role": "target"}
PEER: Final = """
import sys, torch
from netloader import ServerOptions, serve
from benchmarks.own_disk import IDENTITY, weights
options = ServerOptions(max_bandwidth=sys.argv[2] or None, max_clients=1)
with serve(weights(float(sys.argv[1])), IDENTITY, options=options) as server:
    server.wait_ready(600)
    print(server.endpoint, flush=True)
    sys.stdin.read()
"""
TENSORS: Final = 32


def weights(gib: float) -> dict[str, Tensor]:
    """The same tensors in each process."""
    count = int(gib * 2**30) // 4 // TENSORS
    random = torch.Generator().manual_seed(1)
    return {f"layer.{i}": torch.randn(count, generator=random) for i in range(TENSORS)}


@contextmanager
def peer(gib: float, rate: str) -> Iterator[Endpoint]:
    """A server in a process of its own."""
    words = [sys.executable, "-c", PEER, str(gib), rate]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        try:
            yield Endpoint.parse(one.stdout.readline().strip())
        finally:
            one.communicate()


def saved(gib: float, under: Path) -> Path:
    """A folder with these weights."""
    with serve(weights(gib), IDENTITY, options=ServerOptions()) as server:
        server.wait_ready(600)
        opened = server._open  # noqa: SLF001 - what the plugin has as its own
        return (
            save(next(iter(opened[1].published_models)), under, "bench").folder if opened else under
        )


def drop(folder: Path) -> None:
    """Have the kernel forget what it has of a folder."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def from_sources(folder: Path, gib: float, peers: Sequence[Endpoint], *, disk: bool) -> str:
    """Fill fresh memory; who brought how much."""
    into = fresh(gib)
    own = OwnFolder(open_part(folder), ServerOptions()) if disk else None
    try:
        sources = [*peers, *([own.endpoint] if own else [])]
        outcome = fill(into, sources, IDENTITY, ClientOptions(transports=("tcp",)))
    finally:
        if own:
            own.close()
    if not outcome.ok:
        raise SystemExit(outcome.history())
    brought = [a.nbytes for a in outcome.attempts if str(a.source).startswith("file:")]
    return f"{sum(brought) / outcome.nbytes:.0%} of it from the disk"


def fresh(gib: float) -> dict[str, Tensor]:
    """Memory that nobody has written to."""
    count = int(gib * 2**30) // 4 // TENSORS
    return {f"layer.{i}": torch.empty(count) for i in range(TENSORS)}


def ordinary(folder: Path, gib: float) -> str:
    """What a loader of safetensors does: map the file, and copy."""
    into = fresh(gib)
    for path in folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            into[name].copy_(tensor)
    return "not verified"


def main() -> None:
    """Print a table."""
    gib = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with (
        tempfile.TemporaryDirectory() as scratch,
        peer(gib, "") as fast,
        peer(gib, "300MB") as slow,
    ):
        folder = saved(gib, Path(scratch))
        get = partial(from_sources, folder, gib)
        ways: dict[str, Callable[[], str]] = {
            "safetensors and copy": lambda: ordinary(folder, gib),
            "disk": lambda: get((), disk=True),
            "peer": lambda: get((fast,), disk=False),
            "disk and peer": lambda: get((fast,), disk=True),
            "peer of 300 MB/s": lambda: get((slow,), disk=False),
            "disk and peer of 300 MB/s": lambda: get((slow,), disk=True),
        }
        for warmth in ("warm", "cold"):
            table(warmth, ways, rounds, partial(drop, folder) if warmth == "cold" else lambda: None)


def table(
    warmth: str, ways: dict[str, Callable[[], str]], rounds: int, before: Callable[[], None]
) -> None:
    """Run the contenders in turns, and print a row of each."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    said: dict[str, str] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            before()
            begun, cpu = time.perf_counter(), time.process_time()
            said[name] = way()
            took[name].append((time.perf_counter() - begun, time.process_time() - cpu))
    for name, pairs in took.items():
        wall, cpu_s = [list(column) for column in zip(*pairs, strict=True)]
        middle, spread = statistics.median(wall), f"{min(wall):.2f} to {max(wall):.2f}"
        row = f"| {warmth} | {name} | {middle:.2f} ({spread}) | {statistics.median(cpu_s):.2f} |"
        sys.stdout.write(f"{row} {said[name]} |\n")


if __name__ == "__main__":
    main()
