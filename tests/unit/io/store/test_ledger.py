"""Several sources write into one store: only what matched its digest counts, and it stays."""

from collections.abc import Iterator
from itertools import combinations_with_replacement

import pytest
from torch import nn

from netloader.fsm.messages import Offer
from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.memory import memory_of
from netloader.io.store.ledger import Lease, Ledger
from netloader.io.store.module import ModuleStore
from tests.unit.io.helpers import Source, contents, module_of, random

SEGMENT = 40


def model(seed: int) -> nn.Module:
    """Three segments; the last two are of a tensor that is put together apart."""
    return module_of(plain=random(10, seed=seed), holes=random(10, 4, seed=seed + 1)[:, ::2])


RIGHT, OTHER = Source(model(1), SEGMENT), Source(model(50), SEGMENT)


def ledger_of(target: nn.Module) -> Ledger:
    return Ledger(ModuleStore.of(target), lambda done, total: None)


class Bringing:
    """One segment from one source, step by step."""

    def __init__(self, lease: Lease, index: int = 0) -> None:
        self.writer = lease.expect(lease.segments[index])
        self.views = self.writer.views()
        self.block = RIGHT.blocks[index]

    def write(self, block: bytes) -> None:
        start = 0
        for view in self.views:
            view[:] = block[start : start + len(view)]
            start += len(view)

    def finish(self) -> None:
        for view in self.views:
            self.writer.update(view)

    def spoil(self) -> None:
        self.write(b"\xa5" * len(self.block))


def bring(lease: Lease, source: Source, index: int) -> None:
    bringing = Bringing(lease, index)
    bringing.write(source.blocks[index])
    bringing.finish()


def test_two_checkpoints_never_count_together() -> None:
    # The older source used to go on: its segment counted as one of the newer source's.
    target = model(100)
    ledger = ledger_of(target)
    older = ledger.lease(RIGHT.offer)
    late = Bringing(older)

    with pytest.raises(TransferError, match="offers other weights than those") as caught:
        ledger.lease(OTHER.offer)
    assert caught.value.reason is Reason.TRANSFER_FAILED
    ledger.release(older)
    newer = ledger.lease(OTHER.offer)
    late.write(RIGHT.blocks[0])
    with pytest.raises(TransferError, match="the source was dropped"):
        late.finish()

    assert ledger.progress.missing() == (0, 1, 2)
    for index in range(3):
        bring(newer, OTHER, index)
    assert ledger.progress.missing() == ()
    assert contents(target) == contents(model(50))


def test_a_late_byte_of_a_dropped_source_lands_on_no_verified_segment() -> None:
    target = model(100)
    ledger = ledger_of(target)
    slow, fast = ledger.lease(RIGHT.offer), ledger.lease(RIGHT.offer)
    late = Bringing(slow)
    slow.revoke()
    for index in range(3):
        bring(fast, RIGHT, index)

    assert ledger.progress.missing() == (0,), "the slow receiver may still write there"
    late.spoil()
    ledger.release(slow)

    assert ledger.progress.missing() == ()
    assert contents(target) == contents(model(1))
    assert fast.verified_bytes == ledger.total


def test_a_dropped_source_gets_no_memory_and_does_not_count() -> None:
    ledger = ledger_of(model(100))
    lease = ledger.lease(RIGHT.offer)
    begun, writer = Bringing(lease), lease.expect(lease.segments[1])
    begun.write(RIGHT.blocks[0])
    lease.revoke()

    for late in (writer.views, begun.finish, lambda: lease.expect(lease.segments[2])):
        with pytest.raises(TransferError, match="the source was dropped"):
            late()
    assert ledger.verified_bytes == 0


@pytest.mark.parametrize("index", [0, 1])
def test_a_duplicate_of_a_verified_segment_is_written_elsewhere(index: int) -> None:
    target = model(100)
    ledger = ledger_of(target)
    lease = ledger.lease(RIGHT.offer)
    bring(lease, RIGHT, index)

    Bringing(ledger.lease(RIGHT.offer), index).spoil()

    for rest in {0, 1, 2} - {index}:
        bring(lease, RIGHT, rest)
    assert contents(target) == contents(model(1))
    assert ledger.verified_bytes == ledger.counted_bytes == ledger.total


def test_a_verified_copy_takes_the_place_of_a_writer_that_fails() -> None:
    target = model(100)
    ledger = ledger_of(target)
    liar = Bringing(ledger.lease(RIGHT.offer))
    bring(ledger.lease(RIGHT.offer), RIGHT, 0)
    liar.spoil()

    with pytest.raises(TransferError, match="does not match"):
        liar.finish()

    assert ledger.progress.missing() == (1, 2)
    assert contents(target)["plain"] == contents(model(1))["plain"]


class Audience:
    """What an audience heard, in order."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.target = model(100)

    def begin(self, offer: Offer, available: frozenset[int]) -> None:
        self.heard.append((offer.root, available))

    def have(self, segment: int) -> None:
        self.heard.append(segment)

    def leave(self) -> None:
        self.heard.append("leave")
        self.left = contents(self.target)


def test_an_audience_hears_of_each_segment_and_leaves_before_a_new_start() -> None:
    audience = Audience()
    ledger = Ledger(ModuleStore.of(audience.target), lambda done, total: None, audience)
    lease = ledger.lease(RIGHT.offer)
    for index in (0, 2):
        bring(lease, RIGHT, index)
    again = ledger.lease(RIGHT.offer)
    for each in (lease, again):
        ledger.release(each)
    held = contents(audience.target)
    bring(ledger.lease(OTHER.offer), OTHER, 1)

    roots = RIGHT.offer.root, OTHER.offer.root
    first = ["leave", (roots[0], frozenset()), 0, 2, (roots[0], frozenset({0, 2}))]
    assert audience.heard == [*first, "leave", (roots[1], frozenset()), 1]
    assert audience.left == held, "nothing is written before all have left"


def test_without_leave_of_the_audience_nothing_starts_anew() -> None:
    class Reader(Audience):
        def leave(self) -> None:
            if self.heard:
                raise TransferError(Reason.TRANSFER_FAILED, "still read")

    reader = Reader()
    ledger = Ledger(ModuleStore.of(reader.target), lambda done, total: None, reader)
    lease = ledger.lease(RIGHT.offer)
    bring(lease, RIGHT, 0)
    ledger.release(lease)

    with pytest.raises(TransferError, match="still read"):
        ledger.lease(OTHER.offer)

    assert ledger.progress.verified == {0}
    assert ledger.lease(RIGHT.offer).segments == lease.segments


def orders(left: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every order in which some writers take their steps."""
    if not any(left):
        yield ()
    for who, steps in enumerate(left):
        if steps:
            rest = (*left[:who], steps - 1, *left[who + 1 :])
            yield from ((who, *order) for order in orders(rest))


def play(faults: tuple[str, ...], order: tuple[int, ...]) -> None:
    """Three sources bring the same segment: one step begins, one delivers, one ends the source."""
    target = model(100)
    ledger = ledger_of(target)
    leases = [ledger.lease(RIGHT.offer) for _ in faults]
    steps = [0] * len(faults)
    bringing: dict[int, Bringing] = {}
    for who in order:
        match steps[who]:
            case 0:
                bringing[who] = Bringing(leases[who])
            case 1:
                bringing[who].spoil()
                if faults[who] == "drop":
                    leases[who].revoke()
                elif faults[who] == "good":
                    bringing[who].write(RIGHT.blocks[0])
                if faults[who] != "drop":
                    try:
                        bringing[who].finish()
                    except TransferError:
                        assert faults[who] == "lie"
            case _:
                if faults[who] == "drop":
                    bringing[who].spoil()
                ledger.release(leases[who])
        steps[who] += 1
        if 0 in ledger.progress.verified:
            held = bytes(memory_of(target.get_parameter("plain").detach()))
            assert held == RIGHT.blocks[0], (faults, order)
    assert (0 in ledger.progress.verified) == ("good" in faults), (faults, order)


@pytest.mark.parametrize("faults", combinations_with_replacement(("good", "lie", "drop"), 3))
def test_every_order_of_three_sources(faults: tuple[str, ...]) -> None:
    for order in orders((3, 3, 3)):
        play(faults, order)
