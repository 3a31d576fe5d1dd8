"""Digest algorithms by name. The same bytes give the same hexadecimal digest on every host.

BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs) is collision resistant. XXH3
(https://xxhash.com) detects accidents as well, and no attack, at a multiple of the rate; its
package is optional. `netloader.fsm.digest_choice` says which one is used where.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from blake3 import blake3

from netloader.config import check_type, shown
from netloader.fsm.digest_choice import FAST, STRONG, channel_to, flaw_of, published
from netloader.io.cores import cores


class Hasher(Protocol):
    """What is needed of a hash: feed it, then ask."""

    def update(self, data: memoryview, /) -> object:
        """Take more bytes."""

    def hexdigest(self) -> str:
        """The digest of everything taken so far."""


def _blake3(threads: int) -> Hasher:
    return blake3(max_threads=threads)


def _optional() -> dict[str, Callable[[int], Hasher]]:
    """Those whose package is an extra. One thread of xxh3_128 is faster than memory."""
    try:
        from xxhash import xxh3_128
    except ImportError:
        return {}
    return {FAST: lambda _: xxh3_128()}


ALGORITHMS: dict[str, Callable[[int], Hasher]] = {STRONG: _blake3, **_optional()}
"""Every algorithm this side can do; how many threads may work on one update."""


def published_with(choice: str, token: object) -> tuple[str, ...]:
    """What a server of this process offers: see `digest_choice.published` and `channel_to`."""
    return published(choice, ALGORITHMS, channel_to(token))


def check_digest(choice: str) -> None:
    """Refuse what is no choice of a digest algorithm, or cannot be computed here.

    Raises:
        TypeError, ValueError: the message says what to give.
    """
    check_type("digest", choice, str, "give auto, blake3 or xxh3_128")
    if flaw := flaw_of(choice, ALGORITHMS):
        raise ValueError(f"digest is {shown(choice)}; {flaw}")


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
    return digests_by((algorithm,), views)[0]


def digests_by(algorithms: Sequence[str], views: Iterable[memoryview]) -> tuple[str, ...]:
    """The digests of the same bytes by several algorithms; the memory is read once."""
    hashers = [ALGORITHMS[name](1) for name in algorithms]
    for view in views:
        for start in range(0, len(view), STEP_BYTES):
            step = view[start : start + STEP_BYTES]
            for hasher in hashers:
                hasher.update(step)
    return tuple(hasher.hexdigest() for hasher in hashers)


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
