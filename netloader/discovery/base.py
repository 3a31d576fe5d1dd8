"""What finds the servers of one model, and where servers say that they are.

All that a finder returns is untrusted: it is bounded in number and size, and what cannot be read is
counted and left out. A client checks such a source as it checks any other.
"""

import ipaddress
from dataclasses import dataclass
from typing import Final, Protocol

from netloader.config import Endpoint
from netloader.errors import NetloaderError, cause

MOST_CANDIDATES: Final = 256
"""The most that one finder returns: a client needs a few, and a registry may keep thousands."""
MOST_ENTRY_BYTES: Final = 1024
"""The most that an entry may have; ours have about 150."""
MOST_OWNER_CHARS: Final = 64
"""The most of an owner of a claim that is read."""


def is_address(endpoint: Endpoint) -> bool:
    """Whether the host is an address, which needs no look-up."""
    try:
        ipaddress.ip_address(endpoint.host)
    except ValueError:
        return False
    return True


class DiscoveryError(NetloaderError):
    """A finder got no answer, or none that it can read. The message holds no secret."""


def why(error: Exception) -> str:
    """What an error of a finder says, as one line."""
    text = cause(error) or type(error).__name__
    return " ".join(text.split())


@dataclass(frozen=True, slots=True)
class Key:
    """Whose servers are looked for: equal on a server and a client that can fill from it."""

    model: str
    digest: str
    """Of the part of the identity that is known before the model is built, rank included."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server, as far as it is known before it is asked."""

    endpoint: Endpoint
    host: str = ""
    """The same text for all processes of one host; empty: not known."""
    load: float = 0.0
    """Its clients divided by its places."""
    rate: float = 0.0
    """Bytes per second of its last transfer; 0: not known."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a finder has found."""

    candidates: tuple[Candidate, ...] = ()
    unreadable: int = 0
    """Entries that were left out, because they cannot be read."""


class Finder(Protocol):
    """A place where servers are looked up, again and again. Used by one thread at a time."""

    @property
    def name(self) -> str:
        """What the operator wrote, without what might be a secret."""

    def find(self, key: Key, timeout_s: float) -> Found:
        """The servers of now, at most MOST_CANDIDATES; nobody is an answer. Blocks.

        `timeout_s` bounds each wait; the caller bounds the whole call.

        Raises:
            DiscoveryError, OSError: there was no answer.
        """


class Registry(Finder, Protocol):
    """A finder whose entries are put there by the servers themselves, and expire."""

    def every(self, timeout_s: float) -> Found:
        """The servers of all models and ranks, as `netloader top` shows them. Blocks.

        Raises:
            DiscoveryError, OSError: there was no answer.
        """

    def put(self, key: Key, candidate: Candidate, lease_s: int, timeout_s: float) -> None:
        """Put a server there for `lease_s` seconds, or renew its lease. Blocks.

        Raises:
            DiscoveryError, OSError: it is not there.
        """

    def remove(self, key: Key, endpoint: Endpoint, timeout_s: float) -> None:
        """Take a server away. Blocks.

        Raises:
            DiscoveryError, OSError: it may still be there, until its lease ends.
        """

    def claim(self, key: Key, owner: str, lease_s: int, timeout_s: float) -> str:
        """Take a claim for `lease_s` seconds unless another owner holds it, or renew it. Blocks.

        Returns:
            Who holds it now, at most MOST_OWNER_CHARS characters.

        Raises:
            DiscoveryError, OSError: it is not known who does.
        """

    def release(self, key: Key, owner: str, timeout_s: float) -> None:
        """Give a claim back, if this owner holds it. Blocks.

        Raises:
            DiscoveryError, OSError: it may still be held, until its lease ends.
        """
