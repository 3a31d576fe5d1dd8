"""Segments over a `torch.distributed` process group. Law: never the host's default group.

One code path; what differs between backends is one `Backend`. The group has two members (server 0,
client 1), its own store and the session in its name. Large pieces are sent from and received into
place; small ones are packed into a staging buffer. Both sides cut segments into the same parcels.
"""

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from netloader.errors import NetloaderError
from netloader.fsm.manifest import Piece, Segment
from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.intake import Incoming
from netloader.io.transports.base import Inlet, Outlet, Transport
from netloader.io.transports.lane_store import LaneStore
from netloader.io.transports.lanes import Lanes
from netloader.io.weights import memory_of

SERVER, CLIENT = 0, 1
IN_FLIGHT = 4
"""Parcels under way at once: the next are on the wire while one is verified."""
PACK_BELOW = 1 << 20
"""Pieces smaller than this share a parcel: an operation costs about as much as moving 100 KiB."""
PARCEL_BYTES = 8 << 20
"""Largest packed parcel; IN_FLIGHT of them bound the staging memory to 32 MiB."""
GLOO_CONNECT_FACTOR = 5
"""Gloo waits so many times its time-out for a connection; every later wait here names its own."""
SHOWN_CHARS = 200
"""How much of a library's error goes into the verdict."""


@dataclass(frozen=True, slots=True)
class Backend:
    """What differs between the collective libraries.

    `connect(store, rank, host, timeout_s)` makes a group of two, `host` being the address of this
    side that the peer can reach; `abort(group, rank)` makes all that waits on it fail at once.
    """

    name: str
    connect: Callable[[Store, int, str, float], Any]
    abort: Callable[[Any, int], None]


class _Rendezvous(LaneStore):
    """Waits for the peer's word until the stall deadline, however short a time is asked for."""

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Wait until all keys are set."""
        del timeout
        super().wait(keys)


class _Group:
    """A process group of two with its lane, its store and an abort from any thread."""

    def __init__(self, backend: Backend, rank: int, session: str, stall_s: float) -> None:
        self._backend = backend
        self._rank = rank
        self._session = session
        self._timeout = timedelta(seconds=stall_s)
        self._stall_s = stall_s
        self._store: LaneStore | None = None
        self._group: Any = None
        self._aborted = False
        self._lock = threading.Lock()
        self.lanes = Lanes()

    def __enter__(self) -> Self:
        lane = self.lanes.take(1, self._stall_s)[0]
        store = _Rendezvous(lane, self._stall_s)
        with self._lock:
            self._store = store
        prefix = PrefixStore(f"netloader/{self._session}", store)
        try:
            with self._translated():
                self._agree(store)
                host = lane.getsockname()[0]
                group = self._backend.connect(prefix, self._rank, host, self._stall_s)
        except TransferError:
            self.lanes.release()
            raise
        with self._lock:
            self._group = None if self._aborted else group
        return self

    def _agree(self, store: LaneStore) -> None:
        """Make sure that both sides cut the same parcels.

        Gloo ends the whole process when a parcel is larger than the buffer it arrives in, so two
        builds that cut otherwise must not even form a group.
        """
        mine = f"pieces below {PACK_BELOW} share {PARCEL_BYTES} bytes"
        store.set(f"cut by {self._rank}", mine)
        theirs = store.get(f"cut by {1 - self._rank}").decode(errors="replace")[:SHOWN_CHARS]
        if theirs != mine:
            remedy = "run the same netloader on both sides"
            detail = f"parcels differ: here {mine!r}, there {theirs!r}; {remedy}"
            raise TransferError(Reason.TRANSFER_FAILED, detail)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # left open until `abort`: see Lanes.work
            self.lanes.release()
            return
        with self._lock:
            self._group = None
        if self._store is not None:
            self._store.close()
        self.lanes.close()

    def post(self, buffer: Tensor) -> Any:
        """Start to move one buffer to or from the other member."""
        with self._lock:
            group = self._group
        if group is None:
            raise TransferError(Reason.TRANSFER_FAILED, "aborted")
        move = group.send if self._rank == SERVER else group.recv
        with self._translated():
            return move([buffer], 1 - self._rank, 0)

    def wait(self, work: Any) -> None:
        """Wait for one buffer, at most the stall deadline."""
        with self._translated():
            work.wait(self._timeout)

    def abort(self) -> None:
        """Make whatever runs on the group fail; nothing is received into the model any more."""
        with self._lock:
            self._aborted = True
            group, self._group = self._group, None
            store = self._store
        self.lanes.abort()
        if store is not None:
            store.close()
        if group is not None:
            self._backend.abort(group, self._rank)

    @contextlib.contextmanager
    def _translated(self) -> Any:
        try:
            yield
        except NetloaderError:
            raise
        except Exception as error:
            stalled = "timed out" in str(error).lower() and not self._aborted
            reason = Reason.TRANSFER_STALLED if stalled else Reason.TRANSFER_FAILED
            said = (str(error).splitlines() or [type(error).__name__])[0][:SHOWN_CHARS]
            detail = "aborted" if self._aborted else f"{self._backend.name}: {said}"
            raise TransferError(reason, detail) from error


class GroupSending:
    """The server's end."""

    def __init__(self, outlet: Outlet, backend: Backend) -> None:
        self._weights = outlet.weights
        self._group = _Group(backend, SERVER, outlet.session, outlet.stall_s)

    def rendezvous(self) -> Mapping[str, str]:
        """Nothing: the store travels over lane 0."""
        return {}

    def attach(self, index: int, lane: socket.socket) -> None:
        """Take the lane of the store."""
        lane.settimeout(None)
        self._group.lanes.attach(index, lane)

    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        """Send parcel by parcel, IN_FLIGHT at a time."""
        del lanes
        under_way: deque[tuple[Any, Tensor]] = deque()
        with self._group as group:
            for segment in segments:
                for parcel in parcels(segment):
                    buffer = self._pack(parcel)
                    under_way.append((group.post(buffer), buffer))
                    if len(under_way) == IN_FLIGHT:
                        group.wait(under_way.popleft()[0])
            while under_way:
                group.wait(under_way.popleft()[0])
        return sum(segment.nbytes for segment in segments)

    def _pack(self, parcel: Sequence[Piece]) -> Tensor:
        if len(parcel) == 1:
            return self._weights.read(parcel[0])
        buffer = _staging(parcel)
        room = memory_of(buffer)
        for piece in parcel:
            room[: piece.length] = memory_of(self._weights.read(piece))
            room = room[piece.length :]
        return buffer

    def abort(self) -> None:
        """Fail whatever runs."""
        self._group.abort()


class GroupReceiving:
    """The client's end."""

    def __init__(self, inlet: Inlet, backend: Backend) -> None:
        self._inlet = inlet
        self._group = _Group(backend, CLIENT, inlet.session, inlet.stall_s)

    def open(self) -> None:
        """Open the lane of the store."""
        try:
            lane = self._inlet.dial(0)
        except OSError as error:
            raise TransferError(Reason.TRANSFER_FAILED, "no lane for the store") from error
        lane.settimeout(None)
        self._group.lanes.attach(0, lane)

    def run(self, segments: Sequence[Segment]) -> int:
        """Receive and verify parcel by parcel, IN_FLIGHT posted at a time."""
        posted: deque[Callable[[], None]] = deque()
        with self._group as group:
            for segment in segments:
                incoming = self._inlet.intake.expect(segment)
                targets = iter(incoming.tensors)
                for parcel in parcels(segment):
                    while len(posted) >= IN_FLIGHT:
                        posted.popleft()()
                    posted.append(self._expect(group, incoming, parcel, targets))
                posted.append(incoming.finish)
            while posted:
                posted.popleft()()
        return sum(segment.nbytes for segment in segments)

    def _expect(
        self, group: _Group, incoming: Incoming, parcel: Sequence[Piece], targets: Iterator[Tensor]
    ) -> Callable[[], None]:
        """Post one parcel; calling the answer waits for it, and puts it where it belongs."""
        places = [next(targets) for _ in parcel]
        alone = len(places) == 1
        buffer = places[0] if alone else _staging(parcel)
        work = group.post(buffer)

        def settle() -> None:
            group.wait(work)
            arrived = memory_of(buffer)
            incoming.update(arrived)
            for piece, place in zip(parcel, () if alone else places, strict=False):
                memory_of(place)[:] = arrived[: piece.length]
                arrived = arrived[piece.length :]

        return settle

    def abort(self) -> None:
        """Fail whatever runs."""
        self._group.abort()


def parcels(segment: Segment) -> Iterator[list[Piece]]:
    """The pieces of a segment by operation: each large one alone, small neighbours together."""
    packed: list[Piece] = []
    room = PARCEL_BYTES
    for piece in segment.pieces:
        if packed and (piece.length >= PACK_BELOW or piece.length > room):
            yield packed
            packed, room = [], PARCEL_BYTES
        if piece.length >= PACK_BELOW:
            yield [piece]
        else:
            packed.append(piece)
            room -= piece.length
    if packed:
        yield packed


def _staging(parcel: Sequence[Piece]) -> Tensor:
    return torch.empty(sum(piece.length for piece in parcel), dtype=torch.uint8)


def process_group(backend: Backend) -> Transport:
    """The transport of a backend."""
    return Transport(
        backend.name,
        partial(GroupSending, backend=backend),
        partial(GroupReceiving, backend=backend),
    )


def _connect_gloo(store: Store, rank: int, host: str, timeout_s: float) -> Any:
    gloo: Any = dist.ProcessGroupGloo  # its stubs leave out what is needed to name the device
    options = gloo._Options()  # noqa: SLF001 - there is no public name
    options._timeout = timedelta(seconds=timeout_s / GLOO_CONNECT_FACTOR)  # noqa: SLF001
    options._devices = [gloo.create_device(hostname=host)]  # noqa: SLF001
    return gloo(store, rank, 2, options)


def _abort_gloo(group: Any, rank: int) -> None:
    """Gloo has no abort; a receive that times out closes the pair, and that fails everything."""
    with contextlib.suppress(RuntimeError):
        nothing = torch.empty(1, dtype=torch.uint8)
        group.recv([nothing], 1 - rank, 1).wait(timedelta(milliseconds=1))


GLOO = process_group(Backend("gloo", _connect_gloo, _abort_gloo))
