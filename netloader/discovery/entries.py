"""One entry of a registry, as JSON: where a server is, and how much it has to do."""

import msgspec

from netloader.config import Endpoint
from netloader.discovery.base import MOST_ENTRY_BYTES, Candidate, is_address


class _Entry(msgspec.Struct):
    endpoint: str
    host: str = ""
    load: float = 0.0
    rate: float = 0.0


def render(candidate: Candidate) -> bytes:
    """The entry of a server, as one line."""
    entry = _Entry(str(candidate.endpoint), candidate.host, candidate.load, candidate.rate)
    return msgspec.json.encode(entry)


def parse(data: bytes) -> Candidate | None:
    """What an entry says; None when it cannot be read."""
    if len(data) > MOST_ENTRY_BYTES:
        return None
    try:
        entry = msgspec.json.decode(data, type=_Entry)
        endpoint = Endpoint.parse(entry.endpoint)
    except (msgspec.MsgspecError, ValueError):  # UnicodeDecodeError is a ValueError
        return None
    if not is_address(endpoint):  # a name would have to be looked up, which nothing bounds
        return None
    return Candidate(endpoint, entry.host, max(entry.load, 0.0), max(entry.rate, 0.0))
