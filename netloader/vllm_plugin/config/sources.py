"""How `SOURCE` is read: which rank asks which sources."""

from collections.abc import Mapping

from netloader.config import Endpoint, Place, each, text_line, whole


def _endpoint(at: Place, value: object) -> Endpoint | None:
    try:
        text = text_line(at, value)
        return None if text is None else Endpoint.parse(text)
    except ValueError as error:
        at.problems.append(f"{at.path}: {error}")
        return None


def _source(at: Place, value: object) -> tuple[int | None, tuple[Endpoint, ...]]:
    if not isinstance(value, Mapping):
        at.refuse(value, 'give {"device_id": 0, "sources": ["host:port"]}')
        return None, ()
    at.refuse_unknown(value, ("device_id", "sources"))
    rank = whole(0, 2**31 - 1)(at.inside(".device_id"), value.get("device_id"))
    return rank, each(_endpoint)(at.inside(".sources"), value.get("sources"))


def sources(at: Place, value: object) -> dict[int, tuple[Endpoint, ...]]:
    """Read the list of ranks with their sources."""
    found: dict[int, tuple[Endpoint, ...]] = {}
    for rank, endpoints in each(_source)(at, value):
        found[rank] = found.get(rank, ()) + endpoints
    return {rank: endpoints for rank, endpoints in found.items() if endpoints}
