"""What the tests of workers give them and hear of them."""

import queue
from dataclasses import dataclass, field
from typing import ClassVar

from netloader.fsm.effects import PrepareOffer
from netloader.fsm.events import Event
from netloader.io.worker import Order, SessionWorker
from tests.unit.io.helpers import SOON_S

PREPARE = PrepareOffer(("tcp",), "blake3", 0)
SESSION = "s" * 32


@dataclass
class Heard:
    """What a worker reported."""

    worker: SessionWorker
    events: "queue.SimpleQueue[Event]" = field(default_factory=queue.SimpleQueue)
    troubles: list[Exception] = field(default_factory=list)
    made: ClassVar[list[SessionWorker]] = []

    def __post_init__(self) -> None:
        self.made.append(self.worker)
        self.worker.post = self.events.put
        self.worker.trouble = self.troubles.append

    def after(self, order: Order) -> Event:
        """Give an order and wait for its event."""
        self.worker.begin(order)
        event = self.events.get(timeout=SOON_S)
        assert self.events.empty()
        return event
