"""SIGINT and SIGTERM as an event, for work that ends in order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupted() -> Iterator[threading.Event]:
    """Inside the block the signals set the event; a second one ends the process at once."""
    event = threading.Event()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, usual[signal.Signals(number)])
        event.set()

    for number in usual:
        signal.signal(number, note)
    try:
        yield event
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
