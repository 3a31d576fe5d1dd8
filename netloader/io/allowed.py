"""Which peers may connect: those of some networks. All others are closed before there is state."""

import ipaddress

from netloader.config import Endpoint, network
from netloader.io.seldom import Seldom
from netloader.log import Logger


class Allowed:
    """The networks of one listener, as CIDR texts; none: every peer is allowed. For one thread."""

    def __init__(self, networks: tuple[str, ...], logger: Logger) -> None:
        self._networks = tuple(map(network, networks))
        self._refused = Seldom(logger, "netloader.listener.refused")

    def permits(self, peer: Endpoint, now: float) -> bool:
        """Whether a peer is in one of the networks; of one that is not, the log is told.

        `now` is in seconds of a monotonic clock.
        """
        if not self._networks:
            return True
        address = ipaddress.ip_address(peer.host)
        if any(address in each for each in self._networks):
            return True
        detail = "its address is in none of the allowed networks"
        self._refused.tell(peer, detail, "add its network to ALLOW if it is one of yours", now)
        return False
