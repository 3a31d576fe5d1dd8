"""A session's worker reports to its fetch, and waits for what the fetch wants."""

import queue
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from netloader.fsm.effects import ChooseSegments
from netloader.fsm.events import Ask, Finish
from netloader.fsm.fetch_events import Available, Completed, Offered, Reported
from netloader.fsm.manifest import segments_of
from netloader.io.asking import Asking
from netloader.io.client_worker import ClientWorker
from netloader.io.store.digests import ALGORITHMS
from netloader.io.store.ledger import Ledger
from netloader.io.store.module import ModuleStore
from netloader.io.transports import TransferError
from tests.unit.io.helpers import SOON_S, eventually, module_of, offer_of, random

KIB = 1 << 10
SEGMENT = 64 * KIB
ALL = (0, 1, 2)


class Case:
    """A session with source 7, what its worker reports, and what is filled."""

    def __init__(self) -> None:
        source = ModuleStore.of(module_of(w=random(3 * SEGMENT, seed=1, dtype=torch.uint8)))
        self.bytes = [bytes(next(source.views(s))) for s in segments_of(source.manifest, SEGMENT)]
        digests = tuple(map(digest_of, self.bytes))
        self.offer = offer_of(source.manifest, digests, SEGMENT)
        target = ModuleStore.of(module_of(w=random(3 * SEGMENT, seed=2, dtype=torch.uint8)))
        self.ledger = Ledger(target, lambda done, total: None)
        self.lease = self.ledger.lease(self.offer)
        self.said: queue.SimpleQueue[Reported] = queue.SimpleQueue()
        self.asking = Asking(7, self.ledger, self.said.put)
        self._pool = ThreadPoolExecutor(1)

    def on_worker(self, call: Callable[[], object]) -> Future[object]:
        """Begin a call on the worker's thread."""
        return self._pool.submit(call)

    def choose(self, number: int) -> Future[object]:
        """What is asked for next."""
        order = ChooseSegments(ALL, number, frozenset(ALL))
        return self.on_worker(lambda: self.asking.choose(self.lease, order))

    def hears(self) -> Reported:
        """What the worker reports next."""
        return self.said.get(timeout=SOON_S)

    def bring(self, *segments: int) -> None:
        """Receive segments."""
        for index in segments:
            writer = self.lease.expect(self.lease.segments[index])
            for view in writer.views():
                view[:] = self.bytes[index]
                writer.update(view)

    def close(self) -> None:
        self.asking.abort()
        self._pool.shutdown()


@pytest.fixture
def case() -> Iterator[Case]:
    made = Case()
    yield made
    made.close()


def digest_of(data: bytes) -> str:
    hasher = ALGORITHMS["blake3"](1)
    hasher.update(memoryview(data))
    return hasher.hexdigest()


def test_an_offer_is_reported_with_what_the_store_holds_of_it(case: Case) -> None:
    case.bring(1)
    taken = case.on_worker(lambda: case.asking.offered(case.offer, repeatable=False))

    said = case.hears()
    assert isinstance(said, Offered)
    assert (said.source, said.root.value) == (7, case.offer.root)
    assert (said.available, said.held) == (frozenset(ALL), frozenset({1}))
    assert not said.repeatable
    assert not taken.done(), "the transport is opened when the fetch has taken the offer"
    case.asking.take()
    taken.result(SOON_S)


def test_two_offers_of_other_values_are_not_of_one_root(case: Case) -> None:
    manifest = replace(case.ledger.store.manifest, values=(("step", "1"),))
    other = offer_of(manifest, case.offer.segment_digests, SEGMENT)
    for offer in (case.offer, other):
        case.on_worker(lambda offer=offer: case.asking.offered(offer, repeatable=True))  # type: ignore[misc]
        case.asking.take()
    one, two = case.hears(), case.hears()

    assert isinstance(one, Offered)
    assert isinstance(two, Offered)
    assert one.root != two.root
    assert one.root.value == two.root.value


def test_the_worker_asks_what_it_is_told_and_reports_the_end_of_each_request(case: Case) -> None:
    first = case.choose(1)
    case.asking.answer(Ask((0, 1)))
    assert first.result(SOON_S) == Ask((0, 1))
    case.bring(0, 1, 2)

    second = case.choose(2)
    assert case.hears() == Completed(7)
    case.asking.answer(Finish())
    assert second.result(SOON_S) == Finish()


def test_a_source_that_is_asked_for_nothing_more_has_only_to_complete(case: Case) -> None:
    # Others brought the rest, and failed before they said so: no session may ask twice for nothing.
    later = case.choose(2)
    assert case.hears() == Completed(7)
    case.bring(*ALL)

    case.asking.answer(Ask(()))
    assert case.hears() == Completed(7)
    case.asking.answer(Finish())

    assert later.result(SOON_S) == Finish()
    assert case.ledger.settled_for == case.ledger.store.manifest.digest


def test_of_two_sessions_that_find_nothing_missing_one_completes_the_store(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    completed = list[int]()
    monkeypatch.setattr(ModuleStore, "complete", lambda store: completed.append(1))
    second = Asking(8, case.ledger, case.said.put)
    leases = {case.asking: case.lease, second: case.ledger.lease(case.offer)}
    case.bring(*ALL)

    for asking, lease in leases.items():
        asking.answer(Finish())
        assert asking.choose(lease, ChooseSegments((), 2, frozenset(ALL))) == Finish()

    assert [case.hears(), case.hears()] == [Completed(7), Completed(8)]
    assert completed == [1]


def test_nothing_has_arrived_in_a_session_before_its_source_may_write(case: Case) -> None:
    # What another source brought may be of other weights: it is given up with the first lease.
    case.bring(1)

    session = ClientWorker(case.ledger, 1, lambda: socket.socket(), SOON_S)

    assert case.ledger.arrived(frozenset(ALL)) == frozenset({1})
    assert session.arrived(frozenset(ALL)) == frozenset()


def test_what_a_source_has_later_is_reported_after_its_offer(case: Case) -> None:
    case.asking.note(frozenset({2}))
    case.on_worker(lambda: case.asking.offered(case.offer, repeatable=True))

    assert isinstance(case.hears(), Offered)
    assert case.hears() == Available(7, frozenset({2}))
    case.asking.note(frozenset({1}))
    assert case.hears() == Available(7, frozenset({1}))


@pytest.mark.parametrize("waits", ["offered", "choose", "settle"])
def test_waiting_ends_when_the_session_is_aborted(case: Case, waits: str) -> None:
    if waits == "settle":  # another session does it
        case.bring(*ALL)
        case.ledger.settling.acquire()
    calls = {
        "offered": lambda: case.on_worker(lambda: case.asking.offered(case.offer, repeatable=True)),
        "choose": lambda: case.choose(1),
        "settle": lambda: case.choose(2),
    }
    waiting = calls[waits]()
    assert eventually(waiting.running)

    case.asking.abort()

    with pytest.raises(TransferError, match="aborted"):
        waiting.result(SOON_S)
