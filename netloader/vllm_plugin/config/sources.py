"""How `SOURCE` is read: which rank asks which sources, or where it looks them up."""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from netloader.config import Endpoint, Place, Secret, each, text_line, whole
from netloader.discovery.base import Finder
from netloader.discovery.urls import (
    FinderSpec,
    finder_of,
    is_looked_up,
    is_registry,
    located,
    registry_of,
)
from netloader.errors import ConfigError
from netloader.vllm_plugin.config.readers import HIDDEN

EVERY_RANK: Final = -1
"""In the place of a rank, for a `SOURCE` of texts."""
NOWHERE: Final = FinderSpec(Secret(""))
"""The registry of a server that does not publish itself."""
SOURCES: Final = (
    'give a text such as "redis://host/prefix" or "host:port", or a list of such texts, '
    'or a list such as [{"device_id": 0, "sources": ["host:port"]}]'
)
Source: TypeAlias = Endpoint | FinderSpec


def finders_of(sources: Mapping[int, tuple[Source, ...]], rank: int) -> tuple[Finder, ...]:
    """Where a rank finds its sources, in order."""
    own = tuple(
        located(source) if isinstance(source, Endpoint) else source.finder(0)
        for source in sources.get(rank, ())
    )
    common = (s for s in sources.get(EVERY_RANK, ()) if isinstance(s, FinderSpec))
    return own + tuple(source.finder(rank) for source in common)


def _looked_up(at: Place, value: object) -> FinderSpec | None:
    text = text_line(at, value)
    if text is None:
        return None
    try:
        finder_of(text, 0)
    except ValueError as error:
        if is_looked_up(text):
            at.refuse(HIDDEN, str(error))
        else:
            at.problems.append(f"{at.path}: {error}")
        return None
    return FinderSpec(Secret(text))


def _item(at: Place, value: object) -> Source | None:
    if isinstance(value, str) and is_looked_up(value):
        return _looked_up(at, value)
    try:
        text = text_line(at, value)
        return None if text is None else Endpoint.parse(text)
    except ValueError as error:
        at.problems.append(f"{at.path}: {error}")
        return None


def _source(at: Place, value: object) -> tuple[int | None, tuple[Source, ...]]:
    if not isinstance(value, Mapping):
        at.refuse(value, 'give {"device_id": 0, "sources": ["host:port"]}')
        return None, ()
    at.refuse_unknown(value, ("device_id", "sources"))
    rank = whole(0, 2**31 - 1)(at.inside(".device_id"), value.get("device_id"))
    return rank, each(_item)(at.inside(".sources"), value.get("sources"))


def sources(at: Place, value: object) -> dict[int, tuple[Source, ...]]:
    """Read a text, or several, for every rank, or the list of ranks with their sources."""
    if isinstance(value, str):
        spec = _looked_up(at, value)
        return {EVERY_RANK: (spec,)} if spec else {}
    if isinstance(value, list | tuple) and any(isinstance(item, str) for item in value):
        read = each(_looked_up)(at, value)
        return {EVERY_RANK: tuple(spec for spec in read if spec is not None)}
    if not isinstance(value, list | tuple):
        at.refuse(value, SOURCES)
        return {}
    found: dict[int, tuple[Source, ...]] = {}
    for rank, places in each(_source)(at, value):
        found[rank] = found.get(rank, ()) + places
    return {rank: places for rank, places in found.items() if places}


def dealt(texts: Sequence[str], rank: int, ranks: int) -> dict[int, tuple[Source, ...]]:
    """The sources of a rank, of those that are named to a running instance, each as in `SOURCE`.

    One alone is for every rank. Several are dealt to the ranks in turn: with two ranks the first
    and third are for rank 0, the second and fourth for rank 1. `rank` may be numbered on from
    other instances; its place among the `ranks` of this one counts.

    Raises:
        ConfigError: one cannot be used, or a rank would have none, or fewer than another.
    """
    problems: list[str] = []
    at = Place("source", problems)
    if len(texts) == 1:
        found = sources(at, texts[0])
    else:
        read = [_item(at.inside(f"[{i}]"), text) for i, text in enumerate(texts)]
        named = tuple(source for source in read if source is not None)
        found = {rank: named[rank % ranks :: ranks]}
        if len(texts) % ranks:
            problems.append(
                f"source: {len(texts)} given, and this instance has {ranks} ranks; give each rank "
                "as many as the others, in the order of the ranks"
            )
    if problems:
        raise ConfigError(problems)
    return found


def publish(at: Place, value: object) -> FinderSpec | None:
    """Read the registry in which a server publishes itself; NOWHERE for `no`."""
    text = text_line(at, value)
    if text is None:
        return None
    if text.lower() == "no":
        return NOWHERE
    try:
        registry_of(text)
    except ValueError as error:
        at.refuse(HIDDEN, f"{error}, or no")
        return None
    return FinderSpec(Secret(text))


def registry_in(
    sources: Mapping[int, tuple[Source, ...]], publish: FinderSpec | None
) -> FinderSpec | None:
    """Where a server publishes itself: in its own registry, or in that of its sources."""
    if publish is not None:
        return None if publish == NOWHERE else publish
    specs = (s for s in sources.get(EVERY_RANK, ()) if isinstance(s, FinderSpec))
    return next((spec for spec in specs if is_registry(spec.text.reveal())), None)
