"""What an operator writes, as a finder. No error shows the text: it may hold a password."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from netloader.config import Endpoint, Secret
from netloader.discovery.base import Finder, is_address
from netloader.discovery.files import Files
from netloader.discovery.names import Address, HostName, ServiceName

RANK: Final = "{RANK}"
"""What stands for the number of the rank in a path."""


def is_looked_up(text: str) -> bool:
    """Whether a text is more than host and port, or is meant to be."""
    return "://" in text or "@" in text or text.startswith(tuple(SCHEMES))


@dataclass(frozen=True, slots=True)
class FinderSpec:
    """What an operator wrote, for finders of any rank."""

    text: Secret

    def finder(self, rank: int) -> Finder:
        """The finder for a rank, as `finder_of`."""
        return finder_of(self.text.reveal(), rank)


def finder_of(text: str, rank: int) -> Finder:
    """The finder that `text` describes, for a rank of a client.

    Ports that are written, or that DNS names, are those of rank 0; rank 1 has the next one.

    Raises:
        ValueError: it cannot be used; the message says what to write.
    """
    for scheme, make in SCHEMES.items():
        if text.startswith(scheme):
            rest = text.removeprefix(scheme)
            if not rest.strip() or not rest.isprintable():
                raise ValueError(f"{scheme} is followed by nothing that can be looked up")
            return make(rest, rank)
    if is_looked_up(text):
        raise ValueError(f"there is no such kind of source; write host:port, or {KNOWN}")
    endpoint = Endpoint.parse(text)
    return located(Endpoint(endpoint.host, endpoint.port + rank))


def located(endpoint: Endpoint) -> Finder:
    """The finder of a source that is written as host and port."""
    return Address(endpoint) if is_address(endpoint) else HostName(endpoint)


def _files(rest: str, rank: int) -> Finder:
    return Files(rest.replace(RANK, str(rank)))


SCHEMES: Final[Mapping[str, Callable[[str, int], Finder]]] = {
    "srv+": ServiceName,
    "file:": _files,
}
KNOWN: Final = ", ".join(f"{scheme}..." for scheme in SCHEMES)
"""The kinds of sources that are looked up, for messages."""
