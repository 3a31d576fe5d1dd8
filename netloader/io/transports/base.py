"""The transport contract: a transport moves the bytes of given segments.

The objects of a transport, from the longest lived to the shortest:

    Transport    one per process: a name, what it can do, whether it can be used here
    Attachment   one per store (a model's memory): what outlives a session, such as registrations
    Sender       one per session on the server, made by the attachment of what it serves
    Receiver     one per session on the client, made by the attachment of what it fills

One session makes these calls:

    server                                    client
    attachment.sender(setup)
    sender.rendezvous()    --- offer --->     attachment.receiver(setup)
                                              receiver.open(rendezvous) -> answer
    sender.answered(answer)  <--- answer ---  receiver.join()
                             --- opened --->
    sender.run(segments, lanes)               receiver.run(segments)
    ...                                       ...            once for each request
    sender.end()                              receiver.end()

An offer names several transports, in order. The server makes a sender for each of them, the client
opens one after the other, until one is open at both ends. The rest of the senders are ended then,
and see neither `answered` nor `run`. So what a process has only once, such as a communicator, is
taken in `answered` and not before: a session that goes over another transport must not hold it.

All but `abort` and `attach` are called on one worker thread of the session, and `end` exactly once,
also when `open`, `join` or `answered` raised. `abort` may
be called at any time, from any thread. A transport reports every failure of its own as a
TransferError; any other exception is logged as a bug, and ends the session too.

The server keeps its weights from being changed or freed from before the sender is made until
`Sender.end` has returned. So a client may read them at any time in between, and not afterwards.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from socket import socket
from typing import Protocol, runtime_checkable

from netloader.fsm.manifest import Segment
from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.pacing import UNPACED, Pace
from netloader.io.store.base import Store
from netloader.io.store.ledger import Lease


class BusyError(TransferError):
    """There is no room for one more session now; the client is refused as busy."""

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.BUSY, detail)


class Direction(Enum):
    """Which side moves the bytes."""

    PUSH = "push"
    """The sender's `run` moves them, and returns when they are sent."""
    PULL = "pull"
    """The receiver's `run` reads them. The sender's `run` returns when they have been read."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a transport can do. `auto` decides by it, before there is a session."""

    direction: Direction = Direction.PUSH
    devices: frozenset[str] | None = None
    """The torch device types of the memory that it moves, such as {"npu"}; None: any, because it
    reads and writes through host memory."""
    same_host: bool = False
    """Whether it works only between processes of one host. Two host names that are equal prove
    nothing: both ends must see the same object of the kernel, see `Receiver.open`."""
    repeatable: bool = True
    """Whether `run` may be called again after it has returned, for another request. If not, a
    second request of a session fails, and the client needs another session."""
    automatic: bool = True
    """Whether it may be used where no transport is named. Not one that opens a port of its own,
    which no token protects."""
    paced: bool = False
    """Whether the sender asks `SenderSetup.pace` before it sends. A server with a limit does not
    offer transports that do not, such as those whose bytes the client fetches."""


@dataclass(frozen=True, slots=True)
class SenderSetup:
    """What a sender is given: the id of its session, and how long a peer may do nothing.

    A sender calls `pace.take` with what it is about to send, in parts of at most `pace.step(...)`
    bytes where it can choose. The wait ends with the session, and is no stall.
    """

    session: str
    stall_s: float
    pace: Pace = UNPACED
    rails: tuple[str, ...] = ()
    """Addresses of this host at which the server's port can be reached too."""


def _no_rail(index: int, to: str, source: str) -> socket:
    del to, source
    raise OSError(f"lane {index} has no other address to go to")


@dataclass(frozen=True, slots=True)
class ReceiverSetup:
    """What a receiver is given. `lease` says where bytes go, and verifies them.

    `dial(i)` opens data lane i, a TCP connection to the server's one port, which the sender gets by
    its `attach`. It blocks, and raises OSError. `lanes` is how many the client would like.
    `dial_rail(i, to, source)` does so at another address of the server, from one of this host;
    empty: as `dial`. `rails` are the addresses of this host that lanes should come from.
    """

    lease: Lease
    session: str
    stall_s: float
    dial: Callable[[int], socket]
    lanes: int
    dial_rail: Callable[[int, str, str], socket] = _no_rail
    rails: tuple[str, ...] = ()


class Sender(Protocol):
    """The server's end of one session."""

    def rendezvous(self) -> Mapping[str, str]:
        """What the receiver must know to open its end: texts, at most a few hundred bytes.

        Part of the offer, so a token protects it from change on the way, but not from being read.
        Called once, on the worker thread. Must not block, and costs as little as making the sender:
        the client may choose another transport.
        """

    def answered(self, answer: Mapping[str, str]) -> None:
        """Take what `Receiver.open` returned, and do with the receiver what takes both ends.

        On the worker thread, once at most, before the first `run`, while the client is in
        `Receiver.join`. Blocks for at most `stall_s`. The peer is not trusted.

        Raises:
            BusyError: there is no room now. The client is told to come again, and does not go on to
                another transport.
            TransferError: it cannot begin with this peer. No weights were moved; another transport
                will be tried.
        """

    def attach(self, index: int, lane: socket) -> None:
        """Take data lane `index`, or close it. Called on the listener's thread; must not block.

        A lane may come late, twice, after `abort`, after `end`, or never.
        """

    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        """Have these segments moved; returns how many bytes that were.

        On the worker thread. Blocks, but never longer than `stall_s` while nothing moves.

        Raises:
            TransferError: it failed, stalled or was aborted.
        """

    def abort(self) -> None:
        """Make `run` raise TransferError within a second, now or when it is called.

        From any thread, any number of times, before, while and after `run`. Must not block.
        """

    def end(self) -> None:
        """Free everything. The session is over, and `abort` was called.

        On the worker thread, exactly once, also when `run` was never called. When it has returned,
        neither this process nor the peer touches the weights by means of this session any more. May
        block for a few seconds.

        Raises:
            TransferError: something may still be read. The weights stay protected for good.
        """


class Receiver(Protocol):
    """The client's end of one session."""

    def open(self, rendezvous: Mapping[str, str]) -> Mapping[str, str]:
        """Open this end; returns what the sender must know of it: texts, as in a rendezvous.

        The answer is sent to the server under the proof of the token, if there is one. On the
        worker thread. Blocks for at most `stall_s`. The rendezvous comes from the peer and
        is not trusted. A transport for one host finds out here whether the peer is on it.

        Raises:
            TransferError: it cannot begin with this peer. Nothing was written; another transport
                will be tried.
        """

    def join(self) -> None:
        """Do what takes both ends, while the server is in `Sender.answered`.

        On the worker thread, once at most, after `open`. Blocks for at most `stall_s`.

        Raises:
            TransferError: as `open`.
        """

    def run(self, segments: Sequence[Segment]) -> int:
        """Receive and verify these segments; returns how many bytes that were.

        On the worker thread. Blocks, but never longer than `stall_s` while nothing moves.

        Raises:
            TransferError: it failed, stalled or was aborted, or bytes did not match their digest.
        """

    def abort(self) -> None:
        """Make `open`, `join` and `run` raise TransferError within a second; as `Sender.abort`."""

    def end(self) -> None:
        """Free everything. The session is over, and `abort` was called.

        On the worker thread, exactly once, also when `open` or `run` was never called. When it has
        returned, nothing is written into the weights any more. May block for a few seconds.

        Raises:
            TransferError: something may still be written. The caller of `fill` gets an UnsafeError.
        """


class Attachment(Protocol):
    """A transport's hold on one store. Its methods may be called from any thread."""

    def sender(self, setup: SenderSetup) -> Sender:
        """Make the server's end for one session. Must not block, nor take what is there only once.

        Raises:
            BusyError: there is no room now.
            TransferError: it cannot be made, for instance for memory of this device.
        """

    def receiver(self, setup: ReceiverSetup) -> Receiver:
        """Make the client's end for one session. Must not block.

        Raises:
            TransferError: it cannot be made, for instance for memory of this device.
        """

    def detach(self) -> None:
        """Free what was made for the store. Every sender and receiver has ended; called once."""


@runtime_checkable
class Transport(Protocol):
    """A way to move bytes. Its methods may be called from any thread."""

    @property
    def name(self) -> str:
        """What settings, hellos, offers and logs call it."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; always the same."""

    def obstacle(self) -> str:
        """Why it cannot be used in this process, as one sentence; empty if it can."""

    def attach(self, store: Store) -> Attachment:
        """Get ready for the memory of one store, which stays where it is until `detach`.

        Raises:
            TransferError: it cannot.
        """
