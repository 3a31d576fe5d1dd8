"""Log records about peers that are turned away: few of them, however many peers there are."""

from netloader.config import Endpoint
from netloader.log import Logger, emit

EVERY_S = 10.0
"""Seconds between two records of one kind, so a flood of peers writes few lines."""


class Seldom:
    """Records of one event: each names the last peer, and counts those since the one before.

    For one thread.
    """

    def __init__(self, logger: Logger, event: str) -> None:
        self._logger = logger
        self._event = event
        self._count = 0
        self._told_at: float | None = None

    def tell(self, peer: Endpoint, detail: str, remedy: str, now: float) -> None:
        """Count a peer, and write a record if it is time; `now` is of a monotonic clock."""
        self._count += 1
        if self._told_at is not None and now - self._told_at < EVERY_S:
            return
        fields = {
            "network.peer.address": peer.host,
            "network.peer.port": peer.port,
            "netloader.connections": self._count,
            "netloader.detail": detail,
            "netloader.remedy": remedy,
        }
        emit(self._logger, self._event, fields)
        self._told_at, self._count = now, 0
