"""The tcp transport: from tensor memory to sockets and back, without copies.

Lane k of n carries segments k, k+n, k+2n ... of the request, back to back, without a header:
both sides know the plan.
"""

import errno
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from netloader.fsm.manifest import Segment
from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from netloader.io.failure import TransferError
from netloader.io.store.base import Store
from netloader.io.transports.base import Capabilities, ReceiverSetup, SenderSetup
from netloader.io.transports.lanes import Lanes, is_stall, lane_error, set_stall, suit_own_host
from netloader.io.transports.rails import Rails, heard, told
from netloader.io.transports.refusal import check

IOV_MAX = 1024
"""Buffers per system call (Linux UIO_MAXIOV)."""
SEND_BYTES = 1 << 20
"""Bytes per send call: what is in flight then stays in the cache. On loopback a plain socket
is about twice as fast with 1 MiB a call as with everything in one call."""
RECEIVE_BYTES = 256 << 10
"""Bytes per receive call: what was just received is hashed while it is still in the L2 cache."""


def batches(views: Iterable[memoryview], size: int) -> Iterator[list[memoryview]]:
    """Group memory into batches of at most `size` bytes and IOV_MAX buffers, in order."""
    batch: list[memoryview] = []
    room = size
    for view in views:
        rest = view
        while len(rest) > room:
            batch.append(rest[:room])
            yield batch
            rest, batch, room = rest[room:], [], size
        if rest:
            batch.append(rest)
            room -= len(rest)
        if not room or len(batch) == IOV_MAX:
            yield batch
            batch, room = [], size
    if batch:
        yield batch


def after(batch: list[memoryview], done: int) -> list[memoryview]:
    """What is left of a batch when its first `done` bytes have moved."""
    for i, view in enumerate(batch):
        if done < len(view):
            return [view[done:], *batch[i + 1 :]]
        done -= len(view)
    return []


# A blocking call that moves less than it was given has used up its time (see set_stall): what is
# left may move at once, or the peer has stalled. Waiting again would double the deadline; nor may
# the next batch wait, when what was left of this one just fitted into the buffers. Or it was cut
# short by a signal (socket(7), signal(7): SIGSTOP, a debugger, a freezer), and just goes on.


def go_on(lanes: Lanes) -> None:
    """Stop here when another lane has failed."""
    if lanes.interrupted:
        raise TransferError(Reason.TRANSFER_FAILED, "another lane failed")


def send_batch(lane: socket.socket, batch: list[memoryview], flags: int = 0) -> int:
    """Send all of a batch; returns the flags for the next one."""
    while batch:
        begun = monotonic()
        batch = after(batch, lane.sendmsg(batch, (), flags))
        if batch and is_stall(lane, monotonic() - begun):
            flags = socket.MSG_DONTWAIT
    return flags


def receive_batch(lane: socket.socket, batch: list[memoryview]) -> None:
    """Fill all of a batch."""
    flags = socket.MSG_WAITALL
    while batch:
        begun = monotonic()
        count, *_ = lane.recvmsg_into(batch, 0, flags)
        if not count:
            raise TransferError(Reason.TRANSFER_FAILED, "the data connection closed early")
        batch = after(batch, count)
        if batch and is_stall(lane, monotonic() - begun):
            flags = socket.MSG_DONTWAIT


def expect_word(lane: socket.socket, word: bytes) -> None:
    """Receive one byte, and see that it is the one that the client has to say now.

    Raises:
        TransferError: it is another one, or the connection was closed.
    """
    said = bytearray(1)
    receive_batch(lane, [memoryview(said)])
    if said != word:
        detail = "the client said something else on the lane"
        raise TransferError(Reason.TRANSFER_FAILED, detail)


def as_transfer_error(error: OSError) -> TransferError:
    """What a failed call on a data lane means for the transfer."""
    if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.ETIMEDOUT):
        return TransferError(Reason.TRANSFER_STALLED, "no byte moved within the stall deadline")
    return lane_error(error, "failed")


class TcpSender:
    """The server's end."""

    def __init__(self, store: Store, setup: SenderSetup) -> None:
        self._store = store
        self._stall_s = setup.stall_s
        self._pace = setup.pace
        self._rails = setup.rails
        self._lanes = Lanes()

    def rendezvous(self) -> Mapping[str, str]:
        """The addresses of this host for its lanes; they come to the port that the client knows."""
        return told(self._rails)

    def answered(self, answer: Mapping[str, str]) -> None:
        """Do nothing: there is nothing to answer."""

    def attach(self, index: int, lane: socket.socket) -> None:
        """Take a data lane."""
        set_stall(lane, self._stall_s)
        suit_own_host(lane)
        self._lanes.attach(index, lane)

    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        """Send, one thread a lane."""
        return self._lanes.work(lanes, self._stall_s, partial(self._lane, segments, lanes))

    def _lane(self, segments: Sequence[Segment], lanes: int, k: int, lane: socket.socket) -> int:
        own, flags = segments[k::lanes], 0
        size = self._pace.step(SEND_BYTES)
        try:
            for segment in own:
                for batch in batches(self._store.views(segment), size):
                    self._pace.take(batch)
                    go_on(self._lanes)
                    flags = send_batch(lane, batch, flags)
        except OSError as error:
            raise as_transfer_error(error) from error
        return sum(segment.nbytes for segment in own)

    def abort(self) -> None:
        """Shut the lanes down; blocked calls return at once."""
        self._lanes.abort()

    def end(self) -> None:
        """Close the lanes."""
        self._lanes.close()


class TcpReceiver:
    """The client's end."""

    def __init__(self, setup: ReceiverSetup) -> None:
        self._setup = setup
        self._lanes = Lanes()

    def open(self, rendezvous: Mapping[str, str]) -> Mapping[str, str]:
        """Open every lane to the server's port."""
        rails = Rails(self._setup, heard(rendezvous))
        for index in range(self._setup.lanes):
            try:
                lane = rails.dial(index)
            except OSError as error:
                raise lane_error(error, "could not be opened") from error
            set_stall(lane, self._setup.stall_s)
            suit_own_host(lane)
            self._lanes.attach(index, lane)
        return {}

    def join(self) -> None:
        """Do nothing: the lanes are there."""

    def run(self, segments: Sequence[Segment]) -> int:
        """Receive and verify, one thread a lane."""
        job = partial(self._lane, segments, self._setup.lanes)
        return self._lanes.work(self._setup.lanes, self._setup.stall_s, job)

    def _lane(self, segments: Sequence[Segment], lanes: int, k: int, lane: socket.socket) -> int:
        own = segments[k::lanes]
        try:
            if own:
                check(lane, sum(segment.nbytes for segment in own))
            for segment in own:
                writer = self._setup.lease.expect(segment)
                for batch in batches(writer.views(), RECEIVE_BYTES):
                    go_on(self._lanes)
                    receive_batch(lane, batch)
                    writer.update(*batch)
        except OSError as error:
            raise as_transfer_error(error) from error
        return sum(segment.nbytes for segment in own)

    def abort(self) -> None:
        """Shut the lanes down; blocked calls return at once."""
        self._lanes.abort()

    def end(self) -> None:
        """Close the lanes."""
        self._lanes.close()


@dataclass(frozen=True, slots=True)
class TcpAttachment:
    """Some weights, as they are: sockets need no preparation of memory."""

    store: Store

    def sender(self, setup: SenderSetup) -> TcpSender:
        """Make the server's end."""
        return TcpSender(self.store, setup)

    def receiver(self, setup: ReceiverSetup) -> TcpReceiver:
        """Make the client's end."""
        return TcpReceiver(setup)

    def detach(self) -> None:
        """Do nothing."""


class Tcp:
    """Plain connections to the server's one port."""

    name = "tcp"
    capabilities = Capabilities(paced=True)

    def obstacle(self) -> str:
        """Nothing stands in the way."""
        return ""

    def attach(self, store: Store) -> TcpAttachment:
        """Keep a reference to the weights."""
        return TcpAttachment(store)


TCP = Tcp()
