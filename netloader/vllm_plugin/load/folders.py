"""Folders of this host as sources of one model: which part of them is this rank's."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from netloader.discovery.base import Finder
from netloader.discovery.files import Files
from netloader.discovery.keys import key_of
from netloader.errors import WeightsError
from netloader.io.own_folder import OwnFolder
from netloader.io.publishing import ServerOptions
from netloader.io.store.cards import CARD, card_in
from netloader.io.store.parts import open_part, parts_in
from netloader.log import Logger, emit, get_logger
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.identity import ranks
from netloader.vllm_plugin.identity.local_model import LocalModel
from netloader.vllm_plugin.log_base import LOG_BASE

MOST_PARTS: Final = 256
"""Of one folder whose cards are read, the newest ones."""
NAMED: Final = 3
"""Fields of another part that a message names."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Those that are served to this rank, and the finders that are none."""

    served: tuple[OwnFolder, ...]
    finders: tuple[Finder, ...]
    problems: tuple[str, ...]
    """Why folders that were named are not served."""


def open_folders(
    finders: Iterable[Finder], model: LocalModel, settings: Settings, logger: Logger
) -> Folders:
    """Serve this rank's part of each folder among some finders; never raises.

    Of several parts that fit it is the newest. What is not used is logged, with the reason.
    """
    served: list[OwnFolder] = []
    others: list[Finder] = []
    problems: list[str] = []
    for finder in finders:
        folders = finder.folders() if isinstance(finder, Files) else ()
        for folder in folders:
            try:
                served.append(_opened(folder, model, settings))
            except (WeightsError, OSError) as error:
                problems.append(tell_refused(folder, str(error), logger))
        if isinstance(finder, Files) and finder.missing:  # before the first start that saves there
            detail = f"{finder.name}: nothing is there"
            fields = {"netloader.detail": detail}
            emit(logger, "netloader.folder.refused", fields, level="info")
        if not folders:
            others.append(finder)
    return Folders(tuple(served), tuple(others), tuple(problems))


def tell_refused(folder: Path, why: str, logger: Logger) -> str:
    """Log why a folder is no source; what the log says."""
    told = f"file:{folder}: {why}"
    emit(logger, "netloader.folder.refused", {"netloader.detail": told})
    return told


def _opened(folder: Path, model: LocalModel, settings: Settings) -> OwnFolder:
    """Serve the newest part of this rank.

    Raises:
        WeightsError, OSError: there is none, or it cannot be used.
    """
    part = part_of(folder, model)
    opened = open_part(part)
    fields = {**ranks.named(model.rank), "netloader.own_folder": str(part)}
    logger = get_logger("server", LOG_BASE, **fields)
    try:
        return OwnFolder(opened, _options(settings, logger))
    except BaseException:
        opened.store.close()
        raise


def part_of(folder: Path, model: LocalModel) -> Path:
    """The newest part of a folder that is this rank's, as far as its card says.

    Raises:
        WeightsError, OSError: there is none.
    """
    problem = ""
    for part in islice(_newest_first(parts_in(folder)), MOST_PARTS):
        why = _unlike(part, model)
        if not why:
            return part
        problem = problem or f"{part.name}: {why}"
    raise WeightsError(f"no part of it is this rank's; {problem}")


def _newest_first(parts: Iterable[Path]) -> Iterator[Path]:
    def written(part: Path) -> float:
        card = part / CARD
        return card.stat().st_mtime if card.exists() else 0.0

    return iter(sorted(parts, key=written, reverse=True))


def _unlike(part: Path, model: LocalModel) -> str:
    """Why a part is not this rank's; empty if it is, as far as its card says."""
    try:
        card = card_in(part)
    except WeightsError as error:
        return str(error)
    if card is None:
        return f"it has no {CARD}"
    if key_of(card.identity) == key_of(model.early):
        return ""
    found = model.early.disagreements(card.identity)[:NAMED]
    return "; ".join(map(str, found)) or "its card lacks what tells ranks from each other"


def _options(settings: Settings, logger: Logger) -> ServerOptions:
    return ServerOptions(
        deadlines=settings.deadlines,
        digest=settings.digest,
        logger=logger,
    )
