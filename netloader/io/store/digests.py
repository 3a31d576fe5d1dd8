"""Digest algorithms by name. The same bytes give the same hexadecimal digest on every host.

BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs) is collision resistant and, measured on one
core with AVX-512, hashes 4.7 GiB/s: more than one TCP connection carries.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from blake3 import blake3

from netloader.io.cores import cores


class Hasher(Protocol):
    """What is needed of a hash: feed it, then ask."""

    def update(self, data: memoryview, /) -> object:
        """Take more bytes."""

    def hexdigest(self) -> str:
        """The digest of everything taken so far."""


def _blake3(threads: int) -> Hasher:
    return blake3(max_threads=threads)


ALGORITHMS: dict[str, Callable[[int], Hasher]] = {"blake3": _blake3}
"""Every algorithm this side can do, best first; how many threads may work on one update."""

MAX_WORKERS = 8
"""Together they hash more than memory delivers; each may hold some chunks of a device's memory."""
STEP_BYTES = 1 << 20
"""Bytes hashed per call: long enough to release the interpreter lock, short enough to share it."""


def hashing_threads() -> int:
    """Threads for bytes that come faster than one core hashes, from an accelerator.

    On a host with eight of them and a few hundred cores, each has eight threads for as long as its
    weights are on their way.
    """
    return min(8, max(1, cores() // 4))


def digest_of(algorithm: str, views: Iterable[memoryview]) -> str:
    """The digest of some memory, in order."""
    hasher = ALGORITHMS[algorithm](1)
    for view in views:
        for start in range(0, len(view), STEP_BYTES):
            hasher.update(view[start : start + STEP_BYTES])
    return hasher.hexdigest()


def digests_of(
    algorithm: str, segments: Iterable[Callable[[], Iterable[memoryview]]], workers: int
) -> tuple[str, ...]:
    """The digests of many segments, `workers` at a time; each is read when its turn comes.

    One worker is the calling thread: a pool's threads would hold up a process that wants to end.
    """
    workers = min(workers, MAX_WORKERS)
    if workers == 1:
        return tuple(digest_of(algorithm, views()) for views in segments)
    with ThreadPoolExecutor(workers, thread_name_prefix="netloader-digest") as pool:
        return tuple(pool.map(lambda views: digest_of(algorithm, views()), segments))
