"""Bytes in, bytes out: the protocol without a socket, a thread, a clock or a tensor.

`Connection` is one control conversation, `Acceptor` decides what a new connection to a server is.
docs/embed/driver.md shows a driver for them.
"""

from netloader.wire.acceptor import Acceptor, Control, Decision, Refusal
from netloader.wire.connection import LINGER_S, Connection
from netloader.wire.frames import Decoder, Heard, Spoken, encode, sendable
from netloader.wire.tasks import Order, Task, Worker, perform

__all__ = [
    "LINGER_S",
    "Acceptor",
    "Connection",
    "Control",
    "Decision",
    "Decoder",
    "Heard",
    "Order",
    "Refusal",
    "Spoken",
    "Task",
    "Worker",
    "encode",
    "perform",
    "sendable",
]
