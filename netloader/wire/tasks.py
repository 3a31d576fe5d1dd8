"""What a connection asks of its driver, and which method carries out which task."""

from collections.abc import Callable
from typing import Protocol, TypeAlias, assert_never

from netloader.fsm.effects import (
    AbortTransfer,
    AuditWeights,
    ChooseSegments,
    JoinTransport,
    NoteAvailable,
    OpenTransport,
    PrepareOffer,
    Settle,
    StartTransfer,
)
from netloader.fsm.events import Event

Order: TypeAlias = PrepareOffer | OpenTransport | JoinTransport | ChooseSegments | StartTransfer
"""Work that takes long, and ends with an event."""
Task: TypeAlias = Order | NoteAvailable | AuditWeights | AbortTransfer | Settle
"""What a driver must have done. `Settle` is the last: then free what the session has."""


class Worker(Protocol):
    """Carries out the tasks of one session. No method may block its caller."""

    post: Callable[[Event], None]
    """Called from any thread with the event that ends an order. The driver sets it."""
    trouble: Callable[[Exception], None]
    """Called from any thread with an exception of the worker's own code."""

    def begin(self, order: Order) -> None:
        """Start on an order; its event is posted when it is done or has failed."""

    def note(self, segments: frozenset[int]) -> None:
        """The source has these segments too; the current `ChooseSegments` may wait for them."""

    def audit(self) -> None:
        """Have the published weights compared with their digests again."""

    def abort(self) -> None:
        """Make the current order fail within a second."""

    def close(self) -> None:
        """The session is over: free everything."""


def perform(task: Task, worker: Worker) -> None:
    """Have a task carried out."""
    match task:
        case (
            PrepareOffer() | OpenTransport() | JoinTransport() | ChooseSegments() | StartTransfer()
        ):
            worker.begin(task)
        case NoteAvailable():
            worker.note(task.segments)
        case AuditWeights():
            worker.audit()
        case AbortTransfer():
            worker.abort()
        case Settle():
            worker.close()
        case _:
            assert_never(task)
