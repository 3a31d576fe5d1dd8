"""A process group of two, seen from one member. Joined once; may be aborted by any thread.

One thread joins, posts and waits, for one request after the other. When the session is over it
calls `end`, not earlier, because the peer must learn the cause from the session before its
communicator breaks. A group is never joined again: its store still has the old addresses.
"""

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from netloader.errors import NetloaderError
from netloader.fsm.reasons import Reason
from netloader.io.device import beside, launched
from netloader.io.failure import TransferError
from netloader.io.transports.backends import CLIENT, Backend, Ticket
from netloader.io.transports.device_slot import IN_FLIGHT, MAX_STUCK, DeviceSlot
from netloader.io.transports.lane_store import LaneStore
from netloader.io.transports.lanes import Lanes
from netloader.io.waiting import poll

GREETING_BYTES = 64
"""What the server sends first: libraries make communicators with the first operation."""
DRAIN_S = 5.0
"""How long operations may still be under way after their group has ended."""
SHOWN_CHARS = 200
"""How much of a library's error goes into the verdict."""


class _Rendezvous(LaneStore):
    """Waits for the peer's keys until the stall deadline, even if a shorter time is asked for."""

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Wait until all keys are set."""
        del timeout
        super().wait(keys)


class _Joining:
    """Makes a group on a thread of its own, which can be left behind.

    Nothing ends HcclCommInitRootInfoConfig or ncclCommInitRankConfig while the peer stays away, but
    the library's own time-out (HCCL_CONNECT_TIMEOUT, 120 s at least).
    """

    def __init__(self, connect: Callable[[], Any], slot: DeviceSlot) -> None:
        self._connect = connect
        self._slot = slot
        self._group: Any = None
        self._failure: Exception | None = None
        self._over = threading.Event()
        self._left = False
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="netloader-join", daemon=True).start()

    def _run(self) -> None:
        group = failure = None
        try:
            group = self._connect()
        except Exception as error:  # noqa: BLE001 - raised by `wait`
            failure = error
        with self._lock:
            if not self._left:
                self._group, self._failure = group, failure
        del group, failure  # one that was left ends here, and no other lives on in this thread
        self._over.set()

    def wait(self, timeout_s: float, stop: threading.Event) -> Any:
        """The group.

        Raises:
            TransferError: it was stopped, or took too long.
            Exception: whatever the library raised.
        """
        try:
            poll(self._over.is_set, "joining the group", timeout_s, stop)
        except TransferError:
            with self._lock:
                self._left = True
                self._group = self._failure = None  # which came just now, too late
            self._slot.strand(MAX_STUCK, self._over.is_set)  # libraries allow one in the making
            raise
        failure, group, self._failure, self._group = self._failure, self._group, None, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # else it and this frame keep each other, and what the library made
        return group


class PeerGroup:
    """One side of a group of two, with its lane and its store."""

    def __init__(
        self, backend: Backend, rank: int, session: str, stall_s: float, slot: DeviceSlot
    ) -> None:
        self.device = slot.device
        self.lanes = Lanes()
        self.stop = threading.Event()
        self.slot = slot
        self._backend = backend
        self._rank = rank
        self._session = session
        self._stall_s = stall_s
        self._store: LaneStore | None = None
        self._making: Any = None
        self._group: Any = None
        self._dead: Callable[[], bool] = lambda: False
        self._under_way: deque[tuple[Any, Tensor]] = deque()
        self._packed = 0
        self._runs = 0
        self._running = False
        self._lock = threading.Lock()

    # -- for the thread that moves ---------------------------------------------------------------

    def join(self) -> None:
        """Make the group, while the other member does the same. No weights move.

        Raises:
            TransferError: it cannot be made, or took longer than the stall deadline.
        """
        with self._working() as lane:
            self._join(lane)

    @contextlib.contextmanager
    def joined(self, sizes: str) -> Iterator[None]:
        """Where this thread may post; `sizes` is the digest of the sizes of all chunks to come."""
        with self._working():
            if self._store is None or self._group is None:
                raise TransferError(Reason.TRANSFER_FAILED, "the group was not joined")
            self._runs += 1
            self._agree(self._store, sizes)
            yield

    @contextlib.contextmanager
    def _working(self) -> Iterator[socket.socket]:
        """Where this thread may use the library and the lane."""
        with self._lock:
            if self.stop.is_set():
                raise TransferError(Reason.TRANSFER_FAILED, "aborted")
            self._running = True
        try:
            with self._translated(), beside(self.device):
                yield self.lanes.take(1, self._stall_s)[0]
        except TransferError:
            self.slot.suspect()
            raise
        finally:
            self.lanes.release()

    def _join(self, lane: socket.socket) -> None:
        store = _Rendezvous(lane, self._stall_s)
        with self._lock:
            self._store = store
        self.slot.staging()  # before the peer waits for us in a library: there may be no room
        ticket = Ticket(
            store=PrefixStore(f"netloader/{self._session}", store),
            rank=self._rank,
            session=self._session,
            host=lane.getsockname()[0],
            timeout_s=self._stall_s,
        )
        joining = _Joining(partial(self._connect, ticket), self.slot)
        try:
            group, dead = joining.wait(self._stall_s, self.stop)
        except TransferError:
            if self._making is not None:  # some libraries can stop while they connect
                self._backend.end(self._making)
            raise
        finally:
            self._making = None
        with self._lock:
            self._group, self._dead = group, dead

    def _agree(self, store: LaneStore, sizes: str) -> None:
        """Make sure that both sides move chunks of the same sizes.

        A library may end the whole process (gloo) or hang (HCCL) when a buffer is smaller than what
        arrives in it, so two sides that disagree must not begin to move.
        """
        store.set(f"sizes of {self._rank}, run {self._runs}", sizes)
        theirs = store.get(f"sizes of {1 - self._rank}, run {self._runs}").decode(errors="replace")
        if theirs != sizes:
            detail = "the two sides would move chunks of different sizes"
            remedy = "run the same netloader on both sides"
            raise TransferError(Reason.TRANSFER_FAILED, f"{detail}; {remedy}")

    def _connect(self, ticket: Ticket) -> tuple[Any, Callable[[], bool]]:
        with beside(self.device):  # a new thread
            group = self._making = self._backend.connect(ticket)
            try:
                work = self._backend.move(group, self.row(GREETING_BYTES), self._rank)
                self._backend.wait(work, self._stall_s, self.stop)
            except Exception:
                del group  # which the traceback would keep, and so its communicator
                raise
            return group, self._backend.watch(group)

    @property
    def in_place(self) -> bool:
        """Whether a chunk of one extent may be posted where it is."""
        return self._backend.in_place

    @property
    def full(self) -> bool:
        """Whether as much is under way as may be: `arrive` first, then post."""
        return len(self._under_way) == IN_FLIGHT

    def make_room(self) -> None:
        """Wait until one more buffer may be under way."""
        if self.full:
            self.arrive()

    @property
    def empty(self) -> bool:
        """Whether nothing is under way."""
        return not self._under_way

    def row(self, nbytes: int) -> Tensor:
        """Staging memory for one chunk, free as long as `full` is heeded."""
        self._packed += 1
        return self.slot.staging()[self._packed % IN_FLIGHT][:nbytes]

    def post(self, buffer: Tensor) -> None:
        """Start to move one buffer to or from the other member."""
        if self.stop.is_set():
            raise TransferError(Reason.TRANSFER_FAILED, "aborted")
        work = self._backend.move(self._group, buffer, self._rank)
        self._under_way.append((work, buffer))

    def arrive(self) -> None:
        """Wait for the oldest buffer, at most the stall deadline."""
        self._backend.wait(self._under_way[0][0], self._stall_s, self.stop)
        self._under_way.popleft()

    def end(self) -> None:
        """End the group. The session is over.

        A client gives the staging memory back, for its engine will measure what is free; a server
        keeps it, for emptying the allocator would slow its engine down.

        Raises:
            TransferError: something may still be written into the model.
        """
        self.abort()
        if not self._running:
            return
        launched(self.device)
        self._drained()  # asks each work for its error, which it has from the group
        with self._lock:
            group, self._group = self._group, None
        if group is not None:
            self._backend.end(group)
            del group
        try:
            poll(self._drained, "ending what was under way", DRAIN_S, threading.Event())
            if self._rank == CLIENT:
                self.slot.clear()
        except TransferError:
            self.slot.strand(1, self._drained)
            self.slot.abandon()
            if self._backend.in_place:
                raise
        finally:
            with self._lock:
                self._running = False
            self.slot.leave(self)

    def _drained(self) -> bool:
        while self._under_way:
            if not (self._backend.ended(self._under_way[0][0]) or self._dead()):
                return False
            self._under_way.popleft()
        return True

    # -- for any thread --------------------------------------------------------------------------

    def abort(self) -> None:
        """Make whatever waits here fail, at once."""
        self.stop.set()
        self.lanes.abort()
        with self._lock:
            store, running = self._store, self._running
            if self._group is not None:  # one more reference would end the group on this thread
                self._backend.wake(self._group, self._rank)
        if store is not None:
            store.close()
        if not running:
            self.slot.leave(self)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise what a library says as the one error that transports raise."""
        try:
            yield
        except NetloaderError as error:
            if self.stop.is_set() and isinstance(error, TransferError):
                raise TransferError(Reason.TRANSFER_FAILED, "aborted") from error
            raise
        except Exception as error:
            aborted = self.stop.is_set()
            stalled = "timed out" in str(error).lower() and not aborted
            reason = Reason.TRANSFER_STALLED if stalled else Reason.TRANSFER_FAILED
            said = (str(error).splitlines() or [type(error).__name__])[0][:SHOWN_CHARS]
            detail = "aborted" if aborted else f"{self._backend.name}: {said}"
            raise TransferError(reason, detail) from error
