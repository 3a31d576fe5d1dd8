"""Write published weights to a folder, beside whatever reads and uses them.

Each segment is copied, and hashed where it lies then: the folder gets its name when all of them
match the published digests, which its card keeps. Nothing here holds the interpreter's lock while
the disk is waited for, or keeps the weights from being changed for longer than it takes to copy
STEP_BYTES.
"""

import contextlib
import ctypes
import fcntl
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
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
from netloader.io.store.cards import CARD, Card
from netloader.io.store.files import FileStore
from netloader.io.store.ledger import Lease, Ledger, SegmentWriter
from netloader.io.store.parts import open_part

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
    """Bytes of weights written; 0: they were there."""
    seconds: float
    removed: tuple[Path, ...] = ()
    """Folders with earlier weights of the same name."""
    left: tuple[str, ...] = ()
    """Such folders that cannot be removed, each with the reason."""


def save(
    published: PublishedModel, under: Path, name: str, damaged: Collection[Path] = ()
) -> Saved:
    """Write what is on offer to the folder `NAME-ROOT` below `under`, and remove older ones.

    `name` stands for one model, one role and one rank. If the same weights are in that folder, only
    its card is written: what is known of them may be newer. A folder that is not whole, or is among
    the resolved paths `damaged`, is removed and written again. Blocks for as long as the disk
    takes, and ends early when the weights change or the process ends.

    Raises:
        SaveError: it is not there, and nothing is left of the attempt.
    """
    begun, nbytes = monotonic(), 0
    digests = published.digests(DIGESTS_S)
    if not digests:
        raise SaveError(published.withdrawn or "the digests of the weights are not known yet")
    folder, card = under / f"{name}-{root_digest(digests)[:16]}", _card(published, digests)
    try:
        with _alone(under, name):
            if folder.resolve() not in damaged and _holds(folder, card):
                card.write(folder)
            else:
                _replace(published, folder, card)
                nbytes = published.entry.manifest.nbytes
            removed, left = _remove_others(under, name, folder)
    except TransferError as error:
        if error.reason is Reason.DIGEST_MISMATCH:  # then clients would get other bytes, too
            published.doubt()
        raise SaveError(str(error)) from error
    except (WeightsError, OSError) as error:
        raise SaveError(str(error)) from error
    return Saved(folder, nbytes, monotonic() - begun, removed, left)


def _card(published: PublishedModel, digests: tuple[str, ...]) -> Card:
    """What is to be known of the folder. A status has no root while clients doubt the bytes."""
    entry = published.entry
    status = replace(status_of(published, (entry.role or "",)), root=root_digest(digests))
    return Card(entry.identity, entry.facts, status, entry.manifest, digests)


def _holds(folder: Path, card: Card) -> bool:
    """Whether a folder holds the weights of a card, as far as that is known without their bytes."""
    try:
        part = open_part(folder)
    except (WeightsError, OSError):
        return False
    part.store.close()
    found = part.card
    if found is None:
        return False
    return (found.manifest, found.segment_digests) == (card.manifest, card.segment_digests)


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


def _replace(published: PublishedModel, folder: Path, card: Card) -> None:
    """Write a folder anew. One that is there is of no use, and has to make room."""
    if folder.exists():
        shutil.rmtree(_hidden(folder), ignore_errors=True)
    _check_room(folder.parent, published)
    _write(published, folder, card)


def _hidden(folder: Path) -> Path:
    """A folder that is to be removed, under a name that the next save removes if a kill comes."""
    return folder.rename(folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.netloader"))


def _write(published: PublishedModel, folder: Path, card: Card) -> None:
    """Copy all segments, each verified where it lies."""
    entry = published.entry
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
                segment_digests=card.segment_digests,
                root=root_digest(card.segment_digests),
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


def _remove_others(under: Path, name: str, kept: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Remove the folders of other weights that were saved under the same name.

    Returns:
        Those that are removed, and those that are not, each with the reason.
    """
    removed, left = list[Path](), list[str]()
    for folder in sorted(card.parent for card in under.glob(f"{name}-*/{CARD}")):
        if folder != kept:
            try:
                shutil.rmtree(_hidden(folder))
                removed.append(folder)
            except OSError as error:
                left.append(f"{folder} cannot be removed: {error}")
    return tuple(removed), tuple(left)
