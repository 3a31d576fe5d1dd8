"""What a fetch says of its sources, beside the records of its sessions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from netloader.config import Endpoint
from netloader.fsm.fetch_events import Root, Spare, Wait
from netloader.io.clock import monotonic
from netloader.log import Logger, emit

NAMED_IN_LOG: Final = 8
"""Sources that one line of the log names: there may be thousands."""


class Named(Protocol):
    """Sources by their number."""

    def __getitem__(self, number: int) -> Endpoint:
        """Where it is."""


@dataclass(frozen=True, slots=True)
class Saying:
    """Writes the records. Without a state; for the thread of the fetch."""

    logger: Logger
    sources: Named

    def waiting(self, wait: Wait, count: int, patience_end: float) -> None:
        """Sources are busy, for the `count`-th time."""
        now = monotonic()
        fields = {
            "netloader.sources": self._names(wait.sources),
            "netloader.wait_s": round(max(wait.until - now, 0.0), 3),
            "netloader.wait_count": count,
            "netloader.patience_s": round(patience_end - now, 3),
        }
        emit(self.logger, "netloader.source.waiting", fields)

    def _names(self, keys: Sequence[int]) -> str:
        named = [str(self.sources[key]) for key in keys[:NAMED_IN_LOG]]
        if more := len(keys) - len(named):
            named.append(f"and {more} more")
        return ", ".join(named)

    def spared(self, spare: Spare, root: Root | None) -> None:
        """A peer is asked for nothing more while an own source is faster."""
        nbytes = 0 if root is None else root.segment_bytes
        fields = {
            "netloader.source": str(self.sources[spare.source]),
            "netloader.peer_rate": _rate(nbytes, spare.pace_s),
            "netloader.own_rate": _rate(nbytes, spare.own_pace_s),
        }
        emit(self.logger, "netloader.source.spared", fields)


def _rate(nbytes: int, seconds: float) -> int:
    """Bytes a second of one segment."""
    return round(nbytes / max(seconds, 1e-9))
