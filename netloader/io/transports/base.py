"""What a transport is. Law: it moves the bytes of given segments, and nothing else.

A transport is a pair of ends for one session. Each end runs on a worker thread, may be aborted
from any other thread, and raises only TransferError.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from socket import socket
from typing import Protocol

from netloader.fsm.manifest import Segment
from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.store.base import Store
from netloader.io.store.ledger import Intake


class BusyError(TransferError):
    """One more session finds no room now; later it may."""

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.BUSY, detail)


@dataclass(frozen=True, slots=True)
class Outlet:
    """What a sending end is given."""

    weights: Store
    session: str
    stall_s: float


@dataclass(frozen=True, slots=True)
class Inlet:
    """What a receiving end is given. `dial(i)` opens data lane i to the server's one port."""

    intake: Intake
    session: str
    stall_s: float
    dial: Callable[[int], socket]
    lanes: int


class Sender(Protocol):
    """The server's end."""

    def rendezvous(self) -> Mapping[str, str]:
        """What the client must know to open its end; goes into the offer."""

    def attach(self, index: int, lane: socket) -> None:
        """Take a data lane that the client opened (from the listener's thread)."""

    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        """Send; returns the bytes sent."""

    def abort(self) -> None:
        """Make `run` end within a second (from any thread; twice does no harm)."""

    def close(self) -> None:
        """After `run`, on its thread, when the session knows how it ended: let go of the rest.

        Raises:
            TransferError: it cannot; something may still move.
        """


class Receiver(Protocol):
    """The client's end."""

    def open(self) -> None:
        """Be ready to receive before the server is told to send."""

    def run(self, segments: Sequence[Segment]) -> int:
        """Receive and verify; returns the bytes received."""

    def abort(self) -> None:
        """Make `run` end within a second (from any thread; twice does no harm)."""

    def close(self) -> None:
        """After `run`, on its thread, when the session knows how it ended: let go of the rest.

        Raises:
            TransferError: it cannot; something may still be written into the model.
        """


@dataclass(frozen=True, slots=True)
class Transport:
    """A way to move bytes, by name.

    `sending` may raise BusyError: the client is told to ask again.
    """

    name: str
    sending: Callable[[Outlet], Sender]
    receiving: Callable[[Inlet], Receiver]
