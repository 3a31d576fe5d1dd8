"""Write published weights to a folder, beside whatever reads and uses them.

Each segment is copied, and hashed where it lies then: the folder gets its name when all of them
match the published digests, which its card keeps. Nothing here holds the interpreter's lock while
the disk is waited for, or keeps the weights from being changed for longer than it takes to copy
STEP_BYTES.
"""

import contextlib
import ctypes
import fcntl
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from netloader.errors import NetloaderError, WeightsError
from netloader.fsm.manifest import Segment, root_digest
from netloader.fsm.messages import Offer
from netloader.fsm.reasons import Reason
from netloader.io.background import BACKGROUND
from netloader.io.clock import monotonic
from netloader.io.failure import TransferError
from netloader.io.memory import address_of
from netloader.io.published import PublishedModel
from netloader.io.settling import settle_when_whole
from netloader.io.standing import status_of
from netloader.io.store.cards import CARD, Card, card_in
from netloader.io.store.files import FileStore
from netloader.io.store.ledger import Lease, Ledger, SegmentWriter

STEP_BYTES: Final = 1 << 20
"""Bytes copied at once: in the L2 cache when they are hashed."""
SPARE_BYTES: Final = 1 << 30
"""What a save leaves free on the disk, for others."""
DIGESTS_S: Final = 600.0
"""How long the digests of what was published may take."""


class SaveError(NetloaderError):
    """Nothing was saved; the message says why, and what would help."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What there is now."""

    folder: Path
    nbytes: int
    """Bytes written; 0: the folder was there."""
    seconds: float
    removed: tuple[Path, ...] = ()
    """Folders with earlier weights of the same name."""


def save(published: PublishedModel, under: Path, name: str) -> Saved:
    """Write what is on offer to the folder `NAME-ROOT` below `under`, and remove older ones.

    `name` stands for one model, one role and one rank. A folder of the same root is left as it is.
    Blocks for as long as the disk takes, and ends early when the weights change or the process
    ends.

    Raises:
        SaveError: it is not there, and nothing is left of the attempt.
    """
    begun = monotonic()
    digests = published.digests(DIGESTS_S)
    if not digests:
        raise SaveError(published.withdrawn or "the digests of the weights are not known yet")
    folder = under / f"{name}-{root_digest(digests)[:16]}"
    try:
        with _alone(under, name):
            if folder.exists() and (card := card_in(folder)) and card.segment_digests == digests:
                return Saved(folder, 0, monotonic() - begun)
            _check_room(under, published)
            _write(published, folder, digests)
            removed = tuple(_remove_others(under, name, folder))
    except TransferError as error:
        if error.reason is Reason.DIGEST_MISMATCH:  # then clients would get other bytes, too
            published.doubt()
        raise SaveError(str(error)) from error
    except (WeightsError, OSError) as error:
        raise SaveError(str(error)) from error
    return Saved(folder, published.entry.manifest.nbytes, monotonic() - begun, removed)


@contextlib.contextmanager
def _alone(under: Path, name: str) -> Iterator[None]:
    """Be the only one that saves under this name on this host, and remove what a killed one left.

    Raises:
        SaveError: another process is at it.
        OSError: the folder cannot be written.
    """
    under.mkdir(parents=True, exist_ok=True)
    with (under / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SaveError("another process saves the same weights there now") from error
        for left in under.glob(f".{name}-*.netloader"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _check_room(under: Path, published: PublishedModel) -> None:
    nbytes, free = published.entry.manifest.nbytes, shutil.disk_usage(under).free
    if free < nbytes + SPARE_BYTES:
        wanted = f"{nbytes} bytes are to be written and {SPARE_BYTES} left free"
        raise SaveError(f"{under} has {free} bytes free, and {wanted}; make room, or name another")


def _write(published: PublishedModel, folder: Path, digests: tuple[str, ...]) -> None:
    """Copy all segments, each verified where it lies."""
    entry = published.entry
    status = status_of(published, (entry.role or "",))
    card = Card(entry.identity, entry.facts, status, entry.manifest, digests)
    store = FileStore.create(folder, entry.manifest, beside={CARD: card.render()})
    with contextlib.closing(store):
        ledger = Ledger(store, lambda done, total: None)  # noqa: ARG005
        lease = ledger.lease(
            Offer(
                session="",
                identity=entry.identity,
                layout=entry.layouts[0],
                candidates=(),
                digest_algorithm=entry.digest_algorithms[0],
                manifest=entry.manifest,
                segment_bytes=entry.segment_bytes,
                segment_digests=digests,
                root=status.root,
            )
        )
        try:
            for segment in published.segments:
                _copy(published, segment, lease)
        finally:
            ledger.release(lease)
        settle_when_whole(lease, lambda: False)


def _copy(published: PublishedModel, segment: Segment, lease: Lease) -> None:
    """Copy one segment to its place.

    Raises:
        SaveError: the weights are changed or taken away now, or the process ends.
        TransferError: the bytes do not match the digest.
    """
    writer: SegmentWriter = lease.expect(segment)
    with published.reading():
        for source, place in _pieces(published.weights.views(segment), writer.views()):
            if (why := published.withdrawn) or BACKGROUND.ending.is_set():
                raise SaveError(why or "the process ends")
            # Not by a slice of `place`: that holds the interpreter's lock, and the write may wait
            # for the disk.
            ctypes.memmove(address_of(place), address_of(source), len(place))
            writer.update(place)


def _pieces(
    source: Iterable[memoryview], places: Iterable[memoryview]
) -> Iterator[tuple[memoryview, memoryview]]:
    """The same bytes on both sides, at most STEP_BYTES at once."""
    rest, left = memoryview(b""), iter(source)
    for whole in places:
        place = whole
        while place:
            rest = rest or next(left)
            n = min(len(rest), len(place), STEP_BYTES)
            piece = rest[:n]
            yield memoryview(bytearray(piece)) if piece.readonly else piece, place[:n]
            rest, place = rest[n:], place[n:]


def _remove_others(under: Path, name: str, kept: Path) -> Iterator[Path]:
    """Remove the folders of other weights that were saved under the same name."""
    for card in sorted(under.glob(f"{name}-*/{CARD}")):
        if card.parent != kept:
            shutil.rmtree(card.parent)
            yield card.parent
