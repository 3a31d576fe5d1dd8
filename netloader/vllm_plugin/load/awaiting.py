"""What a rank on standby waits for: sources that are looked up, and folders of this host.

Written addresses are none: an operator who names one says when it is to be asked.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from netloader.discovery.files import Files
from netloader.discovery.lookup import Looked
from netloader.discovery.names import Address
from netloader.errors import WeightsError
from netloader.io.store.cards import CARD
from netloader.io.store.parts import open_part
from netloader.log import Logger, emit
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.config.sources import finders_of
from netloader.vllm_plugin.identity.local_model import LocalModel
from netloader.vllm_plugin.load.folders import part_of, tell_refused
from netloader.vllm_plugin.load.looking import lookup_of

NOTHING: Final = (
    "no source of this rank is looked up, so this instance is not filled by itself: name a "
    "registry, a DNS name or a file for this rank too, or use `netloader fill`"
)
Versions: TypeAlias = frozenset[tuple[str, int, int]]
"""Files, each with its time of change (nanoseconds) and its size (bytes)."""


class Awaited:
    """The sources of a model that may appear. Used from one thread."""

    def __init__(self, model: LocalModel, settings: Settings, logger: Logger) -> None:
        finders = [
            finder
            for finder in finders_of(settings.sources, model.rank)
            if not isinstance(finder, Address)
        ]
        self._patterns = [finder for finder in finders if isinstance(finder, Files)]
        self._look: Callable[[], Looked] = Looked
        if finders:
            self._look = lookup_of(finders, model, settings, logger).look
        else:
            fields = {"netloader.rank": model.rank, "netloader.detail": NOTHING}
            emit(logger, "netloader.standby.failed", fields)
        self._folders = _Folders(model, lambda folder, why: tell_refused(folder, why, logger))

    def there(self) -> bool:
        """Whether one is there now: a folder of this rank, or a server that can be connected to.

        Blocks as `Lookup.look`.
        """
        folders = (folder for pattern in self._patterns for folder in pattern.folders())
        if any(map(self._folders.fits, folders)):
            return True
        return bool(self._look().sources)


class _Folders:
    """Which folders have a part that a rank can be filled from. Its weights are not read."""

    def __init__(self, model: LocalModel, tell: Callable[[Path, str], object]) -> None:
        self._model = model
        self._tell = tell
        self._strange: dict[Path, Versions] = {}
        """Folders without a part of this rank, by the cards in them, which may be many."""
        self._told: dict[Path, str] = {}

    def fits(self, folder: Path) -> bool:
        """Whether a folder has one; where it has none, the log says why, once for each reason."""
        cards = frozenset(_versions(folder))
        if self._strange.get(folder) == cards:
            return False
        try:
            part = part_of(folder, self._model)
        except (WeightsError, OSError) as error:
            self._strange[folder] = cards
            return self._refuse(folder, str(error))
        try:
            open_part(part).store.close()
        except (WeightsError, OSError) as error:
            return self._refuse(folder, str(error))
        self._told.pop(folder, None)
        return True

    def _refuse(self, folder: Path, why: str) -> bool:
        if self._told.get(folder) != why:
            self._told[folder] = why
            self._tell(folder, why)
        return False


def _versions(folder: Path) -> Iterator[tuple[str, int, int]]:
    for card in (folder / CARD, *folder.glob(f"*/{CARD}")):
        with suppress(OSError):
            found = card.stat()
            yield str(card), found.st_mtime_ns, found.st_size
