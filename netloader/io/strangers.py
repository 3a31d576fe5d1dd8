"""Hosts whose connections fail again and again before a hello: they are closed at once for a while.

A flood of connections that are no client's costs the thread that serves the port, and a log line
each. Every host may fail BURST times, and PER_S times a second from then on; what comes above that
is closed before anything is read, and counted in the log. Refusals of this side's own making, such
as `busy` and `not_ready`, count for nothing, so clients that wait for a server are never strangers.
"""

import ipaddress
from typing import Final

from netloader.config import Endpoint
from netloader.fsm.reasons import Reason
from netloader.fsm.server_session import ServerSession
from netloader.io.seldom import Seldom
from netloader.log import Logger

BURST: Final = 256
"""A fleet behind one address that starts with a wrong token gets its sentence."""
PER_S: Final = 32.0
MOST_HOSTS: Final = 4096
"""Hosts that are remembered; beyond that the one that failed longest ago is forgotten."""
FAILURES: Final = frozenset(
    {
        *(Reason.PROTOCOL_VIOLATION, Reason.AUTH_FAILED, Reason.TLS_REQUIRED),
        *(Reason.CONNECTION_LOST, Reason.DEADLINE_PASSED),
    }
)
"""How a session ends that began with no hello, or with one that was not proven."""
DETAIL: Final = "too many of its connections failed before a hello"
REMEDY: Final = "look for what it is; the records before this one say how they failed"


def is_failure(session: ServerSession) -> bool:
    """Whether a session that is over was no client's."""
    verdict = session.verdict
    return session.hello is None and verdict is not None and verdict.reason in FAILURES


class Strangers:
    """How many failures each host has left. For one thread; `now` is of a monotonic clock."""

    def __init__(self, logger: Logger) -> None:
        self._refused = Seldom(logger, "netloader.listener.refused")
        self._left: dict[str, tuple[float, float]] = {}
        """Failures that are left to a host, and as of when; the host that failed last is last."""

    def permits(self, peer: Endpoint, now: float) -> bool:
        """Whether a host may connect; of one that may not, the log is told."""
        if self._level(_host(peer), now) >= 1.0:
            return True
        self._refused.tell(peer, DETAIL, REMEDY, now)
        return False

    def failed(self, peer: Endpoint, now: float) -> None:
        """A connection of a host has failed."""
        host = _host(peer)
        level = max(0.0, self._level(host, now) - 1.0)
        self._left.pop(host, None)
        self._left[host] = level, now
        if len(self._left) > MOST_HOSTS:
            del self._left[next(iter(self._left))]

    def _level(self, host: str, now: float) -> float:
        level, then = self._left.get(host, (float(BURST), now))
        return min(float(BURST), level + (now - then) * PER_S)


def _host(peer: Endpoint) -> str:
    """An IPv4 address, or the /64 of an IPv6 address, which one host has as a whole."""
    address = ipaddress.ip_address(peer.host.partition("%")[0])
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))
