"""Several network interfaces: the lanes of a session over the addresses that both hosts are given.

A server names its addresses in the rendezvous, in the order of its rails; lane k goes to rail k,
from the k-th address of the client's host where it has been given any. A rail that cannot be used
is left out, and its lanes go where the control connection goes.
"""

import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from socket import socket

from netloader.config import MAX_RAILS
from netloader.io.transports.base import ReceiverSetup

ADDRESSES = "addresses"


def told(addresses: tuple[str, ...]) -> Mapping[str, str]:
    """What a rendezvous says of a server's addresses."""
    return {ADDRESSES: " ".join(addresses)} if addresses else {}


def heard(rendezvous: Mapping[str, str]) -> tuple[str, ...]:
    """The addresses in a rendezvous. It is not trusted: what is no address is left out."""
    found: list[str] = []
    for text in rendezvous.get(ADDRESSES, "").split()[:MAX_RAILS]:
        with suppress(ValueError):
            found.append(str(ipaddress.ip_address(text)))
    return tuple(found)


class Rails:
    """Opens the lanes of one session. For one thread."""

    def __init__(self, setup: ReceiverSetup, remote: tuple[str, ...]) -> None:
        self._setup = setup
        self._remote = remote or ("",)
        self._count = max(len(remote), len(setup.rails))
        self._broken: set[int] = set()

    def dial(self, index: int) -> socket:
        """Lane `index`.

        Raises:
            OSError: it cannot be opened on its rail, nor where the control connection goes.
        """
        if self._count and (rail := index % self._count) not in self._broken:
            local = self._setup.rails or ("",)
            to, source = self._remote[rail % len(self._remote)], local[rail % len(local)]
            try:
                return self._setup.dial_rail(index, to, source)
            except OSError:
                self._broken.add(rail)
        return self._setup.dial(index)
