"""Verified copies of the weights that servers have, as `pull` and `snapshot` write them.

A copy is a part (`netloader.io.store.parts`): its card is written when every segment is verified,
and names the digests that they were compared with.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from netloader.cli.answers import CommandError
from netloader.cli.bars import bar
from netloader.cli.codes import Code
from netloader.cli.sources import Told, failure
from netloader.config import Endpoint
from netloader.errors import WeightsError
from netloader.fsm.manifest import Progress, root_digest
from netloader.fsm.messages import Status
from netloader.fsm.reasons import Reason
from netloader.io.client import fill
from netloader.io.options import ClientOptions
from netloader.io.outcome import Outcome
from netloader.io.store.cards import Card
from netloader.io.store.files import FileStore
from netloader.io.store.folders import HiddenFolder

LAYOUTS: Final = ("raw", "processed")
"""In the order in which they are asked for."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that is to be copied, the servers that have it, and the folder of its part."""

    told: Told
    sources: Sequence[Endpoint]
    folder: Path


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

    def run(self, options: ClientOptions, served_name: str, title: str) -> Outcome:
        """Receive and verify all of it, and write the card. Shows a bar with the title.

        Raises:
            CommandError: not all of it could be received.
            OSError: the card cannot be written.
        """
        told, folder = self.wanted.told, self.wanted.folder
        with bar(title) as report:
            chosen = replace(options, report=report, timeout_s=None)
            outcome = fill(self._store, self.wanted.sources, told.identity, chosen)
        if not outcome.ok:
            raise _failed(outcome)
        status = _status(told, outcome.progress, chosen.layouts)
        digests = outcome.progress.segment_digests
        card = Card(told.identity, told.facts, status, told.manifest, digests, served_name)
        card.write(folder)
        return outcome

    def close(self) -> None:
        """Unmap the files; they are removed unless all was received. Idempotent."""
        self._store.close()


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
