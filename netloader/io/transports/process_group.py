"""Segments over a process group of two. Law: never the host's default group, and one path for all.

What differs between collective libraries is in `backends`. The group has two members (server 0,
client 1), its own store and the session in its name; it serves one transfer. Small pieces share a
staging buffer; large ones are sent from and received into place, where the library allows it. What
was received is verified where it is in the end: on an accelerator it is read back.
"""

import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from netloader.fsm.manifest import Piece, Segment
from netloader.fsm.reasons import Reason
from netloader.io.device import CPU, Fetch, copy_bytes, rooms
from netloader.io.digests import hashing_threads
from netloader.io.failure import TransferError
from netloader.io.intake import Incoming
from netloader.io.memory import memory_of
from netloader.io.parcels import Parcel, parcels, size_of, sizes_digest
from netloader.io.transports.backends import CLIENT, SERVER, Backend
from netloader.io.transports.base import Inlet, Outlet, Transport
from netloader.io.transports.pair import Pair
from netloader.io.weights import Weights

READ_BACK = 2
"""Parcels on their way from the device to the host at once, to be verified."""


class GroupSending:
    """The server's end."""

    def __init__(self, outlet: Outlet, backend: Backend) -> None:
        self._weights = outlet.weights
        device = _device_for(backend, outlet.weights)
        self._pair = Pair(backend, SERVER, outlet.session, outlet.stall_s, device)
        self._pair.berth.claim(self._pair)

    def rendezvous(self) -> Mapping[str, str]:
        """Nothing: the store travels over lane 0."""
        return {}

    def attach(self, index: int, lane: socket.socket) -> None:
        """Take the lane of the store."""
        lane.settimeout(None)
        self._pair.lanes.attach(index, lane)

    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        """Send parcel by parcel, as many at a time as may be under way."""
        del lanes
        pair = self._pair
        read = self._weights.reader(pair.device)
        with pair.joined(sizes_digest(segments)):
            for parcel in chain.from_iterable(map(parcels, segments)):
                if pair.full:
                    pair.arrive()
                pair.post(self._pack(parcel, read))
            while not pair.empty:
                pair.arrive()
        return sum(segment.nbytes for segment in segments)

    def _pack(self, parcel: Parcel, read: Callable[[Piece], Tensor]) -> Tensor:
        pieces = [*map(read, parcel)]
        if len(pieces) == 1 and self._pair.in_place:
            return pieces[0]
        buffer = self._pair.row(size_of(parcel))
        for room, piece in zip(rooms(buffer, pieces), pieces, strict=True):
            copy_bytes(room, piece)
        return buffer

    def abort(self) -> None:
        """Fail whatever runs."""
        self._pair.abort()

    def close(self) -> None:
        """End the group."""
        self._pair.close()


@dataclass(frozen=True, slots=True)
class _Landing:
    """A parcel that was posted: the buffer it arrives in, and where its pieces belong."""

    incoming: Incoming
    buffer: Tensor
    places: tuple[Tensor, ...]

    def spread(self) -> None:
        """Put what has arrived where it belongs."""
        if self.buffer is not self.places[0]:
            for place, room in zip(self.places, rooms(self.buffer, self.places), strict=True):
                copy_bytes(place, room)


class GroupReceiving:
    """The client's end."""

    def __init__(self, inlet: Inlet, backend: Backend) -> None:
        self._inlet = inlet
        self._stall_s = inlet.stall_s
        device = _device_for(backend, inlet.intake.ledger.weights)
        self._pair = Pair(backend, CLIENT, inlet.session, inlet.stall_s, device)
        self._threads = 1 if device == CPU else hashing_threads()
        self._posted: deque[_Landing] = deque()
        self._reading: deque[tuple[Incoming, Fetch]] = deque()

    def open(self) -> None:
        """Have the device for this transfer, and open the lane of the store."""
        pair = self._pair
        pair.berth.wait_for(pair, self._stall_s, pair.stop)
        try:
            lane = self._inlet.dial(0)
        except OSError as error:
            pair.abort()
            raise TransferError(Reason.TRANSFER_FAILED, "no lane for the store") from error
        lane.settimeout(None)
        pair.lanes.attach(0, lane)

    def run(self, segments: Sequence[Segment]) -> int:
        """Receive and verify parcel by parcel, as many posted as may be under way."""
        with self._pair.joined(sizes_digest(segments)):
            for segment in segments:
                incoming = self._inlet.intake.expect(segment, self._threads)
                for parcel in parcels(segment):
                    if self._pair.full:
                        self._land()
                    self._post(incoming, parcel)
            while self._posted:
                self._land()
            while self._reading:
                self._verify()
        return sum(segment.nbytes for segment in segments)

    def _post(self, incoming: Incoming, parcel: Parcel) -> None:
        places = tuple(incoming.target(piece, self._pair.device) for piece in parcel)
        in_place = len(places) == 1 and self._pair.in_place
        buffer = places[0] if in_place else self._pair.row(size_of(parcel))
        self._pair.post(buffer)
        self._posted.append(_Landing(incoming, buffer, places))

    def _land(self) -> None:
        """Take in the oldest parcel: to its places, and from there to where it is verified."""
        self._pair.arrive()
        landing = self._posted.popleft()
        landing.spread()
        if self._pair.device == CPU:
            for place in landing.places:
                landing.incoming.update(memory_of(place))
            return
        self._reading.append((landing.incoming, Fetch(landing.places, self._pair.device)))
        if len(self._reading) > READ_BACK:
            self._verify()

    def _verify(self) -> None:
        incoming, fetch = self._reading.popleft()
        incoming.update(memory_of(fetch.wait(self._pair.stop)))

    def abort(self) -> None:
        """Fail whatever runs."""
        self._pair.abort()

    def close(self) -> None:
        """End the group, and give its memory back."""
        self._pair.close()


def _device_for(backend: Backend, weights: Weights) -> torch.device:
    """The device whose memory a backend moves.

    Raises:
        TransferError: the weights are not on such a device.
    """
    if weights.device.type != backend.device and backend.device != CPU.type:
        detail = f"{backend.name} moves memory of {backend.device} devices"
        where = f"these weights are on {weights.device}; choose tcp or gloo"
        raise TransferError(Reason.TRANSFER_FAILED, f"{detail}, and {where}")
    return CPU if backend.device == CPU.type else weights.device


def transport(backend: Backend) -> Transport:
    """The transport of a backend."""
    return Transport(
        backend.name,
        partial(GroupSending, backend=backend),
        partial(GroupReceiving, backend=backend),
    )
