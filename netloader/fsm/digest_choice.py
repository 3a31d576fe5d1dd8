"""Which digest algorithm a session uses: what a server publishes with, and what a client accepts.

Both algorithms detect every accident. With BLAKE3 nobody can find other bytes with the same digest;
with xxh3_128 somebody who can change bytes on their way can, and it is several times as fast. So
`auto` takes the strong one where there is somebody to protect from: with a token, on a network.
Without a token nobody is authenticated, and the digests themselves may be an attacker's.
"""

from collections.abc import Collection, Iterable
from enum import Enum
from ipaddress import ip_address
from typing import Final

AUTO: Final = "auto"
STRONG: Final = "blake3"
FAST: Final = "xxh3_128"
CHOICES: Final = (AUTO, STRONG, FAST)


class Channel(Enum):
    """Between whom the bytes pass."""

    TRUSTED = "trusted"
    """Within a host; or nobody is authenticated, and accidents are all that digests protect from"""
    EXPOSED = "exposed"
    """Between peers that share a token, where a third may change bytes."""


def channel_to(token: object, hosts: Iterable[str] = ("",)) -> Channel:
    """The channel to all of some hosts; an empty one is not known.

    `token` is a token, several, or where they are; None: peers prove nothing.
    """
    own = all(_is_own(host) for host in hosts)
    return Channel.TRUSTED if token is None or own else Channel.EXPOSED


def _is_own(host: str) -> bool:
    """Whether it is this host, by its text alone: a name may be resolved to any address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def published(choice: str, able: Collection[str], channel: Channel) -> tuple[str, ...]:
    """What a server offers: the algorithm it publishes with, then those computed on demand.

    `able` are the algorithms that this process can compute.
    """
    if choice != AUTO:
        return (choice,)
    order = (FAST, STRONG) if channel is Channel.TRUSTED else (STRONG, FAST)
    return tuple(name for name in order if name in able)


def accepted(
    choice: str, able: Collection[str], channel: Channel, held: str = ""
) -> tuple[str, ...]:
    """What a client asks for, best first. `held` is what segments that it has were verified with.

    Digests by another algorithm say nothing about those, so that one comes first if accepted.
    """
    names = published(choice, able, channel)
    if choice == AUTO and channel is Channel.EXPOSED:
        names = (STRONG,)
    return tuple(sorted(names, key=lambda name: name != held))


def flaw_of(choice: str, able: Collection[str]) -> str:
    """Why a choice cannot be used in this process, with the remedy; empty if it can."""
    if choice not in CHOICES:
        return f"give one of {', '.join(CHOICES)}"
    if choice not in (AUTO, *able):
        return "install vllm-netloader[fast], or give auto or blake3"
    return ""
