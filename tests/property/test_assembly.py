"""A model is put together of what was verified, whatever fails, whoever goes on, in any order.

All from the `Ledger` down is real; sources and transports are played. Some lanes are under way at
once, and where a thread may be held up, while a tensor is moved, the others go on.
"""

from collections import Counter
from collections.abc import Iterator
from time import perf_counter
from typing import Final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from netloader.fsm.manifest import Segment
from netloader.fsm.reasons import Reason
from netloader.io import chunks, formats
from netloader.io.device import CPU
from netloader.io.failure import TransferError
from netloader.io.memory import memory_of
from netloader.io.store import ledger as ledger_module
from netloader.io.store import module as store_module
from netloader.io.store.ledger import Lease, Ledger, SegmentWriter
from netloader.io.store.module import ModuleStore
from tests.property.modules import OLD, OTHER, SAME, Model, build, filled, memory, models
from tests.unit.io.helpers import Source, contents

APART: Final = torch.device("cpu:0")
"""The CPU under another name: what is written there has to be brought to where it belongs."""
DEVICES: Final = (None, CPU, APART)
"""What a transport writes on; None: it fills `views`, as sockets do."""
LANES: Final = 3
FAULTS: Final = ("assign", "assigned", "bring", "brought half", "report")
STEPS: Final = (
    *["begin", "some"] * 6,
    *["all", "all, held up"] * 8,
    *["assign"] * 4,
    *[*FAULTS, "gone"] * 2,
    *["a bit", "another checkpoint", "other segments", "another call"],
)

happened: Counter[str] = Counter()
"""In all runs: read by the test of the statistics."""


class Lane:
    """One segment on its way; until its bytes come, its targets hold anything."""

    def __init__(self, coming: SegmentWriter, segment: Segment, block: bytes, pick: int) -> None:
        self.segment = segment
        self.left = bytearray(block)
        self.hurt = False
        self._incoming = coming
        self._view = memoryview(b"")
        device = DEVICES[pick % len(DEVICES)]
        views = self._landings(device) if device else [*map(spoil, coming.views())]
        self._views = iter(views)

    def _landings(self, device: torch.device) -> Iterator[memoryview]:
        for chunk in chunks.chunks(self.segment):
            places = [self._incoming.target(extent, device) for extent in chunk]
            yield from [spoil(memory_of(place)) for place in places]

    def move(self, most: int) -> None:
        """So many bytes come, or all that are left."""
        while most and self.left:
            self._view = self._view or next(self._views)
            part, self._view = self._view[:most], self._view[most:]
            part[:] = self.left[: len(part)]
            del self.left[: len(part)]
            most -= len(part)
            self._incoming.update(part)


def spoil(view: memoryview) -> memoryview:
    """Somebody has begun to write here."""
    view[:] = b"\xa5" * len(view)
    return view


class Assembly:
    """One target, and sources one after the other."""

    def __init__(self, model: Model, cuts: tuple[int, int], patches: pytest.MonkeyPatch) -> None:
        patches.setattr(store_module, "assign", self.assign)
        patches.setattr(ledger_module, "bring", self.bring_on_a_cpu)
        patches.setattr(chunks, "SMALL_BYTES", 16)
        patches.setattr(chunks, "CHUNK_BYTES", 40)
        self.model = model
        self.target = build(model, OLD)
        self.weights = ModuleStore.of(self.target)
        self.ledger = Ledger(self.weights, lambda *_: self.strike("report"))
        self.shown = [contents(build(model, content)) for content in (OLD, SAME, OTHER)]
        self.sizes = [self.ledger.total // cut + 1 for cut in cuts]
        self.sources: dict[tuple[int, int], Source] = {}
        self.moving: list[Lane] = []
        self.armed: set[str] = set()
        self.held_up = False
        self.leases: list[Lease] = []
        self.follow(SAME, self.sizes[0])

    # -- what happens ----------------------------------------------------------------------------

    def follow(self, content: int, segment_bytes: int) -> None:
        """The next source."""
        key = self.content, self.segment_bytes = content, segment_bytes
        if key not in self.sources:
            self.sources[key] = Source(build(self.model, content), segment_bytes)
        self.source, self.lanes, self.failed = self.sources[key], list[Lane](), False
        for lease in self.leases:
            self.ledger.release(lease)
        self.lease = self.ledger.lease(self.source.offer)
        self.leases = [self.lease]

    def turn_to(self, what: str) -> None:
        """The next source, or the next call."""
        match what:
            case "another checkpoint":
                self.follow(SAME + OTHER - self.content, self.segment_bytes)
            case "other segments":
                self.follow(self.content, self.sizes[self.segment_bytes == self.sizes[0]])
            case "another call":
                self.another_call()
            case _:
                self.follow(self.content, self.segment_bytes)

    def another_call(self) -> None:
        """The fill ends, and its caller goes on from the outcome."""
        for lease in self.leases:
            self.ledger.release(lease)
        before = self.ledger.progress
        self.weights = ModuleStore.of(self.target)
        self.ledger = Ledger(self.weights, lambda *_: self.strike("report"))
        self.ledger.resume(before, lambda: False)
        happened["resumed"] += bool(self.ledger.progress.verified)
        self.leases = []
        self.follow(self.content, self.segment_bytes)

    @property
    def missing(self) -> list[int]:
        """What is not here, and on no lane."""
        coming = [lane.segment.index for lane in self.lanes]
        return [i for i in self.ledger.progress.missing() if i not in coming]

    def take(self, what: str, pick: int) -> None:
        """This step; or, where it cannot be taken, one that helps."""
        match what:
            case "begin" if self.missing and len(self.lanes) < LANES and not self.failed:
                self.begin(pick)
            case "gone" | "another checkpoint" | "other segments" | "another call":
                self.turn_to(what)
            case _ if what in FAULTS:
                self.armed.add(what)
            case "all, held up" if self.missing and len(self.lanes) == 1 and not self.failed:
                self.begin(pick)
            case _ if self.lanes:
                self.go_on(what, self.lanes[pick % len(self.lanes)], pick)
            case _ if self.failed:
                self.follow(self.content, self.segment_bytes)
            case _ if self.missing:
                self.begin(pick)

    def begin(self, pick: int) -> None:
        """All lanes that are free have a segment each, from anywhere on."""
        missing = self.missing
        for turn in range(pick, pick + min(LANES - len(self.lanes), len(missing))):
            segment = self.lease.segments[missing[turn % len(missing)]]
            coming, block = self.lease.expect(segment), self.source.blocks[segment.index]
            self.lanes.append(Lane(coming, segment, block, turn))

    def go_on(self, what: str, lane: Lane, pick: int) -> None:
        if what == "a bit":
            lane.left[pick % len(lane.left)] ^= 1
            lane.hurt = True
            return
        self.held_up = what == "all, held up"
        self.move(lane, pick if what == "some" else len(lane.left))
        self.held_up = False

    def move(self, lane: Lane, most: int) -> None:
        self.moving.append(lane)
        try:
            lane.move(most)
        except (TransferError, OSError):
            assert lane.hurt, "honest-ends-well"
            self.failed, lane.left = True, bytearray()
        self.moving.pop()
        self.lanes = [other for other in self.lanes if other.left or other in self.moving]

    def strike(self, where: str) -> None:
        """Here a thread may be held up, where it holds no lock, or fail."""
        for lane in self.lanes if self.held_up and where != "report" else ():
            if lane.left and lane not in self.moving:
                happened["meanwhile"] += 1
                self.move(lane, len(lane.left))
        if where in self.armed:
            self.armed.remove(where)
            self.moving[-1].hurt = True
            happened[f"failed: {where}"] += 1
            raise OSError if where == "report" else TransferError(Reason.TRANSFER_FAILED, where)

    def assign(self, tensor: Tensor, elements: Tensor) -> None:
        self.strike("assign")
        formats.assign(tensor, elements)
        self.strike("assigned")

    def bring_on_a_cpu(self, place: Tensor, received: Tensor) -> None:
        middle = len(place) // 2
        self.strike("bring")
        place[:middle] = received[:middle]
        self.strike("brought half")
        place[middle:] = received[middle:]

    # -- what holds ------------------------------------------------------------------------------

    def check(self) -> None:
        """After any step."""
        verified = [self.lease.segments[i] for i in self.ledger.progress.verified]
        assert self.ledger.verified_bytes == sum(segment.nbytes for segment in verified)
        here, specs = contents(self.target), self.weights.manifest.tensors
        shared = {spec.shares for spec in specs}
        for index, spec in enumerate(specs):
            if not (self.weights._flat[index] or spec.shares >= 0 or index in shared):
                shown = [content[spec.name] for content in self.shown]
                assert here[spec.name] in shown, "not verified, and yet in a tensor with holes"
        if not self.ledger.progress.missing():
            source = build(self.model, self.content)
            assert here == contents(source), "same-bytes"
            assert memory(self.target) == memory(filled(build(self.model, OLD), source)), "holes"

    def finish(self) -> None:
        """No more faults: the last source sends the rest."""
        self.armed.clear()
        while self.ledger.progress.missing():
            self.take("all", len(self.missing))
            self.check()


steps = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 60)), min_size=20, max_size=60)


@given(models, st.tuples(st.integers(2, 6), st.integers(2, 6)), steps)
def put_together(model: Model, cuts: tuple[int, int], steps: list[tuple[str, int]]) -> None:
    happened["runs"] += 1
    with pytest.MonkeyPatch.context() as patches:
        assembly = Assembly(model, cuts, patches)
        for step in steps:
            assembly.take(*step)
            assembly.check()
        assembly.finish()


def test_verified_segments_hold_the_servers_bytes_after_any_failure(figures: list[str]) -> None:
    happened.clear()
    begun = perf_counter()
    put_together()
    seconds = perf_counter() - begun
    figures.append(f"assembly: {dict(happened)}, {happened['runs'] / seconds * 60:.0f} a minute")
    for event in ("meanwhile", "resumed", *(f"failed: {where}" for where in FAULTS)):
        assert happened[event], f"never {event}"
