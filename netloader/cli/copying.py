"""Verified copies of the weights that servers have, as `pull` and `snapshot` write them.

A copy is a part (`netloader.io.store.parts`): its card is written when every segment is verified,
and names the digests that they were compared with.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Final, Self

from netloader.cli.answers import CommandError
from netloader.cli.bars import bar
from netloader.cli.codes import Code
from netloader.cli.proving import compare
from netloader.cli.sources import Told, failure
from netloader.config import Endpoint
from netloader.errors import WeightsError
from netloader.fsm.manifest import Progress, root_digest
from netloader.fsm.messages import Status
from netloader.fsm.reasons import Reason
from netloader.io.client import fill
from netloader.io.failure import TransferError
from netloader.io.options import ClientOptions
from netloader.io.outcome import Outcome
from netloader.io.store.base import Store
from netloader.io.store.cards import Card
from netloader.io.store.composing import compose
from netloader.io.store.files import FileStore, check_storable
from netloader.io.store.folders import HiddenFolder, mapped
from netloader.io.store.matching import Matcher
from netloader.io.store.memory import HostStore
from netloader.io.store.parts import open_part

LAYOUTS: Final = ("raw", "processed")
"""In the order in which they are asked for."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that is to be copied, the servers that have it, and the folder of its part."""

    told: Told
    sources: Sequence[Endpoint]
    folder: Path


@dataclass(frozen=True, slots=True)
class Copied:
    """A copy that is complete; `kept_bytes` of it were written."""

    wanted: Wanted
    outcome: Outcome
    kept_bytes: int


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """Write into a folder that gets the name `out` after the block, when all is on the disk.

    Raises:
        CommandError: it cannot be written, or the block raised one; nothing is left of it.
    """
    nothing = f"{out} was not written"
    try:
        hidden = HiddenFolder(out)
        try:
            yield hidden.path
            hidden.publish()
        finally:
            hidden.discard()
    except CommandError as error:
        raise CommandError(error.code, f"{error}; {nothing}") from error
    except (WeightsError, OSError) as error:
        raise CommandError(Code.FAILED, f"{error}; {nothing}") from error


class Copy:
    """A copy that is under way. Its space on the disk is taken from the beginning.

    Raises:
        WeightsError: the folder cannot be written, or cannot hold such weights.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._store = FileStore.create(wanted.folder, wanted.told.manifest)

    def run(self, options: ClientOptions, served_name: str, title: str) -> Copied:
        """Receive and verify all of it, and write the card. Shows a bar with the title.

        Raises:
            CommandError: not all of it could be received.
            OSError: the card cannot be written.
        """
        outcome, card = _received(self.wanted, self._store, options, served_name, title)
        card.write(self.wanted.folder)
        return Copied(self.wanted, outcome, outcome.nbytes)

    def close(self) -> None:
        """Unmap the files; they are removed unless all was received. Idempotent."""
        self._store.close()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The files of a checkpoint, in which bytes of ranks are looked for."""

    folder: Path
    matcher: Matcher

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the files into memory.

        Raises:
            CommandError: they cannot be read.
        """
        try:
            return cls(folder, Matcher(mapped(folder)))
        except (WeightsError, OSError) as error:
            raise CommandError(Code.FAILED, f"--checkpoint: {error}") from error


class MappedCopy:
    """A copy of which only the bytes that a checkpoint does not have are written, with a map.

    What is received is kept in host memory until it is written.

    Raises:
        WeightsError: files cannot hold such weights.
    """

    def __init__(self, wanted: Wanted, checkpoint: Checkpoint) -> None:
        self.wanted = wanted
        self._checkpoint = checkpoint
        check_storable(wanted.told.manifest)

    def run(self, options: ClientOptions, served_name: str, title: str) -> Copied:
        """Receive, verify, look for the bytes, and compare what the map composes with the digests.

        Raises:
            CommandError: not all of it could be received, or the map composes something else.
            WeightsError, OSError: it cannot be written.
        """
        folder = self.wanted.folder
        store = HostStore(self.wanted.told.manifest)
        outcome, card = _received(self.wanted, store, options, served_name, title)
        checkpoint = self._checkpoint
        try:
            kept = compose(folder, store, checkpoint.matcher, checkpoint.folder)
        except TransferError as error:
            raise CommandError(Code.FAILED, error.detail) from error
        card.write(folder)
        compare(open_part(folder), outcome.progress, options.cancel or Event())
        return Copied(self.wanted, outcome, kept)

    def close(self) -> None:
        """Do nothing: as `Copy.close`."""


def _received(
    wanted: Wanted, store: Store, options: ClientOptions, served_name: str, title: str
) -> tuple[Outcome, Card]:
    """Fill a store, with a bar; the card of what is in it.

    Raises:
        CommandError: not all of it could be received.
    """
    told = wanted.told
    with bar(title) as report:
        chosen = replace(options, report=report, timeout_s=None)
        outcome = fill(store, wanted.sources, told.identity, chosen)
    if not outcome.ok:
        raise _failed(outcome)
    status = _status(told, outcome.progress, chosen.layouts)
    digests = outcome.progress.segment_digests
    return outcome, Card(told.identity, told.facts, status, told.manifest, digests, served_name)


def _status(told: Told, progress: Progress, layouts: Sequence[str]) -> Status:
    """The status of the source, with what was agreed on for the bytes.

    Raises:
        CommandError: the source had other weights than it has said before.
    """
    root, before = root_digest(progress.segment_digests), told.status
    cut = (progress.digest_algorithm, progress.segment_bytes)
    same_cut = cut == (before.digest_algorithm, before.segment_bytes)
    if same_cut and before.root not in ("", root):
        what = f"the weights of {told.source} were changed meanwhile: root {before.root}, {root}"
        raise CommandError(Code.FAILED, f"{what}; start again")
    return replace(
        before,
        layouts=tuple(name for name in layouts if name in before.layouts),
        digest_algorithm=progress.digest_algorithm,
        segment_bytes=progress.segment_bytes,
        segments=len(progress.segment_digests),
        available=len(progress.segment_digests),
        root=root,
    )


def _failed(outcome: Outcome) -> CommandError:
    if outcome.reason is Reason.STOPPED:
        return CommandError(Code.INTERRUPTED, "interrupted")
    if not outcome.attempts:
        return CommandError(Code.UNREACHABLE, "no source could be asked")
    told = failure(outcome.attempts[-1])
    began = any(attempt.nbytes for attempt in outcome.attempts)
    return CommandError(Code.FAILED if began else told.code, str(told))
