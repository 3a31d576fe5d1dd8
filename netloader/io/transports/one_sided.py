"""Segments through an engine that writes into the memory of another process: NIXL, Mooncake.

Each end has a ring of slots in host memory, the only memory that its engine knows. The server
copies a chunk into one of its slots, has the engine write it into the same slot of the client, and
says so over data lane 0. The client copies the chunk to where it belongs, verifies it there, and
answers that the slot is free.

Weights are not registered with the engine. So they may be changed, put to sleep or freed as with
any transport, a model of any size is two registrations, and a write that comes late finds a slot.

The client's endpoint travels in its answer, which a token proves; the server's own is told to
nobody. The engines themselves ask for no credential: see docs/operate/engines.md.
"""

import ctypes
import mmap
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from netloader.fsm.manifest import Segment
from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.host import unmapped
from netloader.io.store.base import Store
from netloader.io.transports.base import Capabilities, ReceiverSetup, SenderSetup
from netloader.io.transports.lanes import Lanes, lane_error, send_at_once, set_stall
from netloader.io.transports.tcp import (
    as_transfer_error,
    batches,
    expect_word,
    go_on,
    receive_batch,
    send_batch,
)
from netloader.io.waiting import poll

SLOT_BYTES = 4 << 20
SLOTS = 4
"""Chunks that may be filled and not yet read: 16 MiB of memory at each end of a session."""
WRITES = 2
"""Writes under way at once: the next chunk is copied while one travels."""
FILLED, FREED = b"f", b"r"
"""One byte on the lane for each chunk, from the server and from the client."""

Batch = list[memoryview]


class Engine(Protocol):
    """One end of an engine, for one session. Used on one thread.

    Every method but `close` raises TransferError.
    """

    def register(self, address: int, nbytes: int) -> None:
        """Let peers write to this memory, or let it be written from. Once, before the rest."""

    def endpoint(self) -> str:
        """What a peer needs in order to write here, in at most 3 KiB."""

    def connect(self, endpoint: str) -> None:
        """Get ready to write to a peer. The text is not trusted."""

    def write(self, source: int, target: int, nbytes: int) -> Callable[[], bool]:
        """Begin a write from an address here to one of the peer.

        The function returned says whether it is complete, without blocking, and raises
        TransferError if it has failed.
        """

    def close(self) -> None:
        """Let go of the peer and of the memory: from now on nothing is written there."""


class Library(NamedTuple):
    """Where engines come from."""

    name: str
    obstacle: Callable[[], str]
    """Why there can be none in this process, as one sentence; empty if there can."""
    engine: Callable[[str], Engine]
    """Makes one that peers reach at the given address of this host."""


class Ring:
    """SLOTS pieces of host memory, used in turn; freed when nobody refers to it any more."""

    def __init__(self) -> None:
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, SLOTS * SLOT_BYTES, flags=private)
        self._view = memoryview(self._memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.nbytes = SLOTS * SLOT_BYTES

    def slot(self, number: int, nbytes: int) -> memoryview:
        """The first bytes of the slot in which chunk `number` travels."""
        start = offset(number)
        return self._view[start : start + nbytes]


def offset(number: int) -> int:
    """Where in a ring the slot of chunk `number` begins."""
    return number % SLOTS * SLOT_BYTES


def _cannot(name: str, why: str) -> TransferError:
    return TransferError(Reason.TRANSFER_FAILED, f"{name} cannot begin: {why}")


def _address_of(lane: socket.socket) -> str:
    """The address of this host at which the peer of a lane reaches it."""
    return unmapped(lane.getsockname()[0])


class OneSidedSender:
    """The server's end. It fills the client's slots as they become free."""

    def __init__(self, library: Library, store: Store, setup: SenderSetup) -> None:
        self._library = library
        self._store = store
        self._stall_s = setup.stall_s
        self._lanes = Lanes()
        self._stop = threading.Event()
        self._ring: Ring | None = None
        self._engine: Engine | None = None
        self._target = 0
        self._number = 0

    def rendezvous(self) -> Mapping[str, str]:
        """The shape of a ring. No engine is made before the client has chosen this transport."""
        return {"slots": str(SLOTS), "slot_bytes": str(SLOT_BYTES)}

    def answered(self, answer: Mapping[str, str]) -> None:
        """Make an engine, and connect it with the client's."""
        address = answer.get("address", "")
        if not (address.isascii() and address.isdigit()):
            raise _cannot(self._library.name, "the client names no memory to write to")
        self._target = int(address)
        try:
            lane = self._lanes.take(1, self._stall_s)[0]
            self._engine = self._library.engine(_address_of(lane))
        finally:
            self._lanes.release()
        self._ring = Ring()
        self._engine.register(self._ring.address, self._ring.nbytes)
        self._engine.connect(answer.get("endpoint", ""))

    def attach(self, index: int, lane: socket.socket) -> None:
        """Take the lane that says which slots are filled and which are free."""
        set_stall(lane, self._stall_s)
        send_at_once(lane)
        self._lanes.attach(index, lane)

    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        """Fill slot after slot; returns when the client has read them all."""
        del lanes
        return self._lanes.work(1, self._stall_s, lambda _, lane: self._serve(segments, lane))

    def _serve(self, segments: Sequence[Segment], lane: socket.socket) -> int:
        writes = deque[Callable[[], bool]]()
        filled = 0
        try:
            for segment in segments:
                for batch in batches(self._store.views(segment), SLOT_BYTES):
                    if filled + len(writes) == SLOTS:
                        expect_word(lane, FREED)
                        filled -= 1
                    writes.append(self._write(batch))
                    if len(writes) == WRITES:
                        filled += self._written(writes.popleft(), lane)
            while writes:
                filled += self._written(writes.popleft(), lane)
            for _ in range(filled):
                expect_word(lane, FREED)
        except OSError as error:
            raise as_transfer_error(error) from error
        return sum(segment.nbytes for segment in segments)

    def _write(self, batch: Batch) -> Callable[[], bool]:
        """Copy a chunk into its slot, and have it written to the client's."""
        go_on(self._lanes)
        if self._engine is None or self._ring is None:
            raise _cannot(self._library.name, "the client did not answer")
        nbytes = sum(map(len, batch))
        slot, at = self._ring.slot(self._number, nbytes), 0
        for view in batch:
            slot[at : at + len(view)] = view
            at += len(view)
        start = offset(self._number)
        self._number += 1
        return self._engine.write(self._ring.address + start, self._target + start, nbytes)

    def _written(self, write: Callable[[], bool], lane: socket.socket) -> int:
        poll(write, f"a write by {self._library.name}", self._stall_s, self._stop)
        send_batch(lane, [memoryview(FILLED)])
        return 1

    def abort(self) -> None:
        """Stop waiting for a write, and shut the lane down."""
        self._stop.set()
        self._lanes.abort()

    def end(self) -> None:
        """Close the lane and the engine."""
        self._lanes.close()
        if self._engine is not None:
            self._engine.close()


class OneSidedReceiver:
    """The client's end. It takes chunks out of its slots as they are filled."""

    def __init__(self, library: Library, setup: ReceiverSetup) -> None:
        self._library = library
        self._setup = setup
        self._lanes = Lanes()
        self._ring: Ring | None = None
        self._engine: Engine | None = None
        self._number = 0

    def open(self, rendezvous: Mapping[str, str]) -> Mapping[str, str]:
        """Open the lane, and make an engine that the server can write through."""
        shape = rendezvous.get("slots"), rendezvous.get("slot_bytes")
        if shape != (str(SLOTS), str(SLOT_BYTES)):
            raise _cannot(self._library.name, "the server has slots of another size")
        try:
            lane = self._setup.dial(0)
        except OSError as error:
            raise lane_error(error, "could not be opened") from error
        set_stall(lane, self._setup.stall_s)
        send_at_once(lane)
        self._lanes.attach(0, lane)
        self._engine = self._library.engine(_address_of(lane))
        self._ring = Ring()
        self._engine.register(self._ring.address, self._ring.nbytes)
        return {"address": str(self._ring.address), "endpoint": self._engine.endpoint()}

    def join(self) -> None:
        """Do nothing: the sender connects."""

    def run(self, segments: Sequence[Segment]) -> int:
        """Take chunk after chunk to its place, and verify what is there."""
        return self._lanes.work(1, self._setup.stall_s, lambda _, lane: self._take(segments, lane))

    def _take(self, segments: Sequence[Segment], lane: socket.socket) -> int:
        try:
            for segment in segments:
                writer = self._setup.lease.expect(segment)
                for batch in batches(writer.views(), SLOT_BYTES):
                    go_on(self._lanes)
                    receive_batch(lane, [memoryview(bytearray(1))])
                    self._read(batch)
                    send_batch(lane, [memoryview(FREED)])
                    writer.update(*batch)  # where it is now: a slot may change under a reader
        except OSError as error:
            raise as_transfer_error(error) from error
        return sum(segment.nbytes for segment in segments)

    def _read(self, batch: Batch) -> None:
        if self._ring is None:
            raise _cannot(self._library.name, "it was not opened")
        slot, at = self._ring.slot(self._number, sum(map(len, batch))), 0
        for view in batch:
            view[:] = slot[at : at + len(view)]
            at += len(view)
        self._number += 1

    def abort(self) -> None:
        """Shut the lane down."""
        self._lanes.abort()

    def end(self) -> None:
        """Close the lane and the engine."""
        self._lanes.close()
        if self._engine is not None:
            self._engine.close()


@dataclass(frozen=True, slots=True)
class OneSidedAttachment:
    """Some weights, as they are: slots belong to a session."""

    library: Library
    store: Store

    def sender(self, setup: SenderSetup) -> OneSidedSender:
        """Make the server's end."""
        return OneSidedSender(self.library, self.store, setup)

    def receiver(self, setup: ReceiverSetup) -> OneSidedReceiver:
        """Make the client's end."""
        return OneSidedReceiver(self.library, setup)

    def detach(self) -> None:
        """Do nothing."""


class OneSided:
    """A transport over the engines of one library."""

    capabilities = Capabilities(automatic=False)

    def __init__(self, library: Library) -> None:
        self._library = library
        self.name = library.name

    def obstacle(self) -> str:
        """The library may be missing."""
        return self._library.obstacle()

    def attach(self, store: Store) -> OneSidedAttachment:
        """Keep a reference to the weights."""
        return OneSidedAttachment(self._library, store)
