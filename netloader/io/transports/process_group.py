"""Segments over a process group of two, which is never the default group of the process.

What differs between collective libraries is in `backends`. The group has two members (server 0,
client 1), its own store and the session in its name; it serves one transfer. Small extents share a
staging buffer; large ones are sent from and received into place, where the library allows it. What
was received is verified where it is in the end: on an accelerator it is read back; in host memory
one chunk is verified on a second thread while the next ones arrive.
"""

import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from netloader.fsm.manifest import Extent, Segment
from netloader.fsm.reasons import Reason
from netloader.io.chunks import CHUNK_BYTES, Chunk, chunks, size_of, sizes_digest
from netloader.io.device import CPU, Readback, rooms
from netloader.io.failure import TransferError
from netloader.io.memory import memory_of
from netloader.io.store.base import Store
from netloader.io.store.digests import hashing_threads
from netloader.io.store.ledger import SegmentWriter
from netloader.io.transports.backends import BACKENDS, CLIENT, SERVER, Backend
from netloader.io.transports.base import Capabilities, ReceiverSetup, SenderSetup
from netloader.io.transports.device_slot import IN_FLIGHT, DeviceSlots
from netloader.io.transports.host_chunks import Stage, in_place, pack, parts_of, unpack
from netloader.io.transports.lanes import lane_error
from netloader.io.transports.peer_group import PeerGroup

READ_BACK = 2
"""Chunks on their way from the device to the host at once, to be verified."""


class GroupSender:
    """The server's end."""

    def __init__(
        self, store: Store, setup: SenderSetup, backend: Backend, slots: DeviceSlots
    ) -> None:
        self._store = store
        self._pace = setup.pace
        slot = slots.of(_device_for(backend, store))
        self._peer_group = PeerGroup(backend, SERVER, setup.session, setup.stall_s, slot)

    def rendezvous(self) -> Mapping[str, str]:
        """The size of chunks: the store travels over lane 0."""
        return {"chunk_bytes": str(CHUNK_BYTES)}

    def answered(self, answer: Mapping[str, str]) -> None:
        """Have the device for this transfer, and join the group."""
        del answer
        self._peer_group.slot.claim(self._peer_group)
        self._peer_group.join()

    def attach(self, index: int, lane: socket.socket) -> None:
        """Take the lane of the store."""
        lane.settimeout(None)
        self._peer_group.lanes.attach(index, lane)

    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        """Send chunk by chunk, as many at a time as may be under way."""
        del lanes
        peer_group = self._peer_group
        buffers = self._on_host if peer_group.device == CPU else self._on_device
        with peer_group.joined(sizes_digest(segments)):
            for buffer in buffers(segments):
                self._pace.take([buffer])
                peer_group.post(buffer)
            while not peer_group.empty:
                peer_group.arrive()
        return sum(segment.nbytes for segment in segments)

    def _on_host(self, segments: Sequence[Segment]) -> Iterator[Tensor]:
        """Chunks in host memory; each is made when there is room for it."""
        for segment in segments:
            for parts in parts_of(segment, self._store.views(segment)):
                self._peer_group.make_room()
                buffer = in_place(parts)
                if buffer is None:
                    buffer = self._peer_group.row(sum(map(len, parts)))
                    pack(buffer, parts)
                yield buffer

    def _on_device(self, segments: Sequence[Segment]) -> Iterator[Tensor]:
        """Chunks in the memory of an accelerator; each is made when there is room for it."""
        read = self._store.reader(self._peer_group.device)
        for chunk in chain.from_iterable(map(chunks, segments)):
            self._peer_group.make_room()
            yield self._pack(chunk, read)

    def _pack(self, chunk: Chunk, read: Callable[[Extent], Tensor]) -> Tensor:
        extents = [*map(read, chunk)]
        if len(extents) == 1 and self._peer_group.in_place:
            return extents[0]
        buffer = self._peer_group.row(size_of(chunk))
        for room, extent in zip(rooms(buffer, extents), extents, strict=True):
            room.copy_(extent)
        return buffer

    def abort(self) -> None:
        """Fail whatever runs."""
        self._peer_group.abort()

    def end(self) -> None:
        """End the group."""
        self._peer_group.end()


@dataclass(frozen=True, slots=True)
class _HostLanding:
    """A chunk that was posted in host memory; `packed` is None where it arrives in its place."""

    writer: SegmentWriter
    packed: Tensor | None
    parts: Sequence[memoryview]

    def take_in(self) -> None:
        """Put what has arrived where it belongs, and verify it there."""
        for part in self.parts if self.packed is None else unpack(self.packed, self.parts):
            self.writer.update(part)


@dataclass(frozen=True, slots=True)
class _Landing:
    """A chunk that was posted: the buffer it arrives in, and where its extents belong."""

    writer: SegmentWriter
    buffer: Tensor
    places: tuple[Tensor, ...]

    def spread(self) -> None:
        """Put what has arrived where it belongs."""
        if self.buffer is not self.places[0]:
            for place, room in zip(self.places, rooms(self.buffer, self.places), strict=True):
                place.copy_(room)


class GroupReceiver:
    """The client's end."""

    def __init__(
        self, store: Store, setup: ReceiverSetup, backend: Backend, slots: DeviceSlots
    ) -> None:
        self._setup = setup
        self._stall_s = setup.stall_s
        slot = slots.of(_device_for(backend, store))
        self._peer_group = PeerGroup(backend, CLIENT, setup.session, setup.stall_s, slot)
        self._posted: deque[_Landing] = deque()
        self._reading: deque[tuple[SegmentWriter, Readback]] = deque()

    def open(self, rendezvous: Mapping[str, str]) -> Mapping[str, str]:
        """Take the slot of the device for this transfer, and open the lane of the store.

        Two sides that cut chunks otherwise do not even join: see `PeerGroup._agree`.
        """
        if rendezvous.get("chunk_bytes") != str(CHUNK_BYTES):
            detail = f"the server's chunks are not of {CHUNK_BYTES} bytes, as they are here"
            remedy = "run the same netloader on both sides"
            raise TransferError(Reason.TRANSFER_FAILED, f"{detail}; {remedy}")
        peer_group = self._peer_group
        peer_group.slot.wait_for(peer_group, self._stall_s, peer_group.stop)
        try:
            lane = self._setup.dial(0)
        except OSError as error:
            peer_group.abort()
            raise lane_error(error, "could not be opened") from error
        lane.settimeout(None)
        peer_group.lanes.attach(0, lane)
        return {}

    def join(self) -> None:
        """Join the group."""
        self._peer_group.join()

    def run(self, segments: Sequence[Segment]) -> int:
        """Receive and verify chunk by chunk, as many posted as may be under way."""
        receive = self._on_host if self._peer_group.device == CPU else self._on_device
        with self._peer_group.joined(sizes_digest(segments)):
            receive(segments)
        return sum(segment.nbytes for segment in segments)

    def _on_host(self, segments: Sequence[Segment]) -> None:
        """Post into host memory, one chunk less than there are rows: that one is verified."""
        posted: deque[_HostLanding] = deque()
        with Stage("netloader-verify") as verify:

            def land() -> None:
                self._peer_group.arrive()
                verify.put(posted.popleft().take_in)

            for segment in segments:
                writer = self._setup.lease.expect(segment)
                for parts in parts_of(segment, writer.views()):
                    if len(posted) == IN_FLIGHT - 1:
                        land()
                    packed = None
                    buffer = in_place(parts)
                    if buffer is None:
                        buffer = packed = self._peer_group.row(sum(map(len, parts)))
                    self._peer_group.post(buffer)
                    posted.append(_HostLanding(writer, packed, parts))
            while posted:
                land()
            verify.wait()

    def _on_device(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            writer = self._setup.lease.expect(segment, hashing_threads())
            for chunk in chunks(segment):
                if self._peer_group.full:
                    self._land()
                self._post(writer, chunk)
        while self._posted:
            self._land()
        while self._reading:
            self._verify()

    def _post(self, writer: SegmentWriter, chunk: Chunk) -> None:
        places = tuple(writer.target(extent, self._peer_group.device) for extent in chunk)
        alone = len(places) == 1 and self._peer_group.in_place
        buffer = places[0] if alone else self._peer_group.row(size_of(chunk))
        self._peer_group.post(buffer)
        self._posted.append(_Landing(writer, buffer, places))

    def _land(self) -> None:
        """Take in the oldest chunk: to its places, and from there to where it is verified."""
        self._peer_group.arrive()
        landing = self._posted.popleft()
        landing.spread()
        self._reading.append((landing.writer, Readback(landing.places, self._peer_group.device)))
        if len(self._reading) > READ_BACK:
            self._verify()

    def _verify(self) -> None:
        writer, fetch = self._reading.popleft()
        writer.update(memory_of(fetch.wait(self._peer_group.stop)))

    def abort(self) -> None:
        """Fail whatever runs."""
        self._peer_group.abort()

    def end(self) -> None:
        """End the group, and give its memory back."""
        self._peer_group.end()


def _device_for(backend: Backend, weights: Store) -> torch.device:
    """The device whose memory a backend moves.

    Raises:
        TransferError: the weights are not on such a device.
    """
    if weights.device.type != backend.device and backend.device != CPU.type:
        detail = f"{backend.name} moves memory of {backend.device} devices"
        where = f"these weights are on {weights.device}; choose tcp or gloo"
        raise TransferError(Reason.TRANSFER_FAILED, f"{detail}, and {where}")
    return CPU if backend.device == CPU.type else weights.device


@dataclass(frozen=True, slots=True)
class GroupAttachment:
    """Some weights, the library that moves them, and the transport's slots."""

    store: Store
    backend: Backend
    slots: DeviceSlots

    def sender(self, setup: SenderSetup) -> GroupSender:
        """Make the server's end, which has the device's slot only once it is answered."""
        return GroupSender(self.store, setup, self.backend, self.slots)

    def receiver(self, setup: ReceiverSetup) -> GroupReceiver:
        """Make the client's end."""
        return GroupReceiver(self.store, setup, self.backend, self.slots)

    def detach(self) -> None:
        """Do nothing: memory that outlives a session belongs to the device, see DeviceSlot."""


@dataclass(frozen=True, slots=True)
class GroupTransport:
    """The transport of a backend. It has one slot for each device, which all its stores share."""

    backend: Backend
    slots: DeviceSlots = field(default_factory=DeviceSlots, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The backend's."""
        return self.backend.name

    @property
    def capabilities(self) -> Capabilities:
        """Memory of the backend's device; one for the CPU moves that of any device."""
        device = self.backend.device
        devices = None if device == CPU.type else frozenset({device})
        return Capabilities(devices=devices, paced=True)

    def obstacle(self) -> str:
        """Why the library cannot be used in this process."""
        return self.backend.obstacle()

    def attach(self, store: Store) -> GroupAttachment:
        """Keep a reference to the weights."""
        return GroupAttachment(store, self.backend, self.slots)


def named(name: str) -> GroupTransport:
    """The transport of a backend's name."""
    return GroupTransport(BACKENDS[name])
