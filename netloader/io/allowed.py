"""Which peers may connect: those of some networks. All others are closed before there is state."""

import ipaddress

from netloader.config import Endpoint, network
from netloader.log import Logger, emit

EVERY_S = 10.0
"""Seconds between two log records about refused peers, so a flood of them writes few lines."""


class Allowed:
    """The networks of one listener, as CIDR texts; none: every peer is allowed. For one thread."""

    def __init__(self, networks: tuple[str, ...], logger: Logger) -> None:
        self._networks = tuple(map(network, networks))
        self._logger = logger
        self._refused = 0
        self._told_at: float | None = None

    def permits(self, peer: Endpoint, now: float) -> bool:
        """Whether a peer is in one of the networks; of one that is not, the log is told.

        `now` is in seconds of a monotonic clock. A record counts the refusals since the one before
        it, and names the last of these peers.
        """
        if not self._networks:
            return True
        address = ipaddress.ip_address(peer.host)
        if any(address in each for each in self._networks):
            return True
        self._refused += 1
        if self._told_at is None or now - self._told_at >= EVERY_S:
            self._tell(peer)
            self._told_at, self._refused = now, 0
        return False

    def _tell(self, peer: Endpoint) -> None:
        fields = {
            "network.peer.address": peer.host,
            "network.peer.port": peer.port,
            "netloader.connections": self._refused,
            "netloader.detail": "its address is in none of the allowed networks",
            "netloader.remedy": "add its network to ALLOW if it is one of yours",
        }
        emit(self._logger, "netloader.listener.refused", fields)
