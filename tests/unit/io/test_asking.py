"""A session asks for what its fetch wants, while it runs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from netloader.fsm.effects import ChooseSegments, Verdict
from netloader.fsm.events import Ask, Finish
from netloader.fsm.fetch import Fetch, FetchOptions
from netloader.fsm.fetch_events import Dial, SourcesFound
from netloader.fsm.fetch_events import Finish as Over
from netloader.fsm.manifest import segments_of
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.io.asking import Asking
from netloader.io.clock import monotonic
from netloader.io.store.digests import ALGORITHMS
from netloader.io.store.ledger import Ledger
from netloader.io.store.module import ModuleStore
from netloader.io.transports import TransferError
from tests.unit.io.helpers import module_of, offer_of, random

KIB = 1 << 10
SEGMENT = 64 * KIB
ALL = (0, 1, 2)


class Case:
    """A fetch with two sources, the session with the first one, and what it fills."""

    def __init__(self, stall_s: float = 60.0) -> None:
        self.fetch = Fetch(FetchOptions(1, 0.0, stall_s), monotonic())
        assert self.fetch.step(SourcesFound((0,)), monotonic()) == (Dial(0, stepped_down=False),)
        source = ModuleStore.of(module_of(w=random(3 * SEGMENT, seed=1, dtype=torch.uint8)))
        self.bytes = [bytes(next(source.views(s))) for s in segments_of(source.manifest, SEGMENT)]
        digests = tuple(map(digest_of, self.bytes))
        self.offer = offer_of(source.manifest, digests, SEGMENT)
        target = ModuleStore.of(module_of(w=random(3 * SEGMENT, seed=2, dtype=torch.uint8)))
        self.ledger = Ledger(target, lambda done, total: None)
        self.lease = self.ledger.lease(self.offer)
        self.asking = Asking(self.fetch, 0, self.ledger)

    def choose(self, number: int = 1, *available: int) -> Ask | Finish:
        """What is asked for next."""
        return self.asking.choose(self.offer, ChooseSegments(ALL, number, frozenset(available)))

    def bring(self, *segments: int) -> None:
        """Receive segments."""
        for index in segments:
            writer = self.lease.expect(self.lease.segments[index])
            for view in writer.views():
                view[:] = self.bytes[index]
                writer.update(view)


def digest_of(data: bytes) -> str:
    hasher = ALGORITHMS["blake3"](1)
    hasher.update(memoryview(data))
    return hasher.hexdigest()


def beside(call: Callable[[], Ask | Finish], meanwhile: Callable[[], None]) -> Ask | Finish:
    """The answer of a call that another thread waits for."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(call)
        meanwhile()
        return waiting.result(timeout=10.0)


def test_a_source_is_asked_for_all_that_is_missing_and_then_concluded() -> None:
    case = Case()
    assert case.choose(1, *ALL) == Ask(ALL)

    case.bring(*ALL)

    assert case.choose(2, *ALL) == Finish()
    ended = case.asking.ended(Verdict(State.DONE, Reason.VERIFIED), None, another_transport=False)
    assert ended == [Over(State.DONE, Reason.VERIFIED)]


def test_what_is_held_already_is_not_asked_for() -> None:
    case = Case()
    case.bring(1)

    assert case.choose(1, *ALL) == Ask((0, 2))
    assert case.fetch.verified == {1}


def test_a_source_that_has_more_later_is_waited_for() -> None:
    case = Case()
    assert case.choose(1, 0) == Ask((0,))
    case.bring(0)

    later = beside(lambda: case.choose(2, 0), lambda: case.asking.note(frozenset({2})))

    assert later == Ask((2,))


def test_waiting_ends_when_the_session_is_aborted() -> None:
    case = Case()

    with pytest.raises(TransferError, match="aborted"):
        beside(lambda: case.choose(1), case.asking.abort)


def test_a_source_that_never_has_anything_is_dropped() -> None:
    case = Case(stall_s=0.05)

    with pytest.raises(TransferError, match="nothing more is wanted"):
        case.choose(1)

    failed = Verdict(State.FALLBACK, Reason.STOPPED)
    ended = case.asking.ended(failed, None, another_transport=False)
    assert ended[-1] == Over(State.FALLBACK, Reason.NO_SOURCE)


def test_a_transfer_that_failed_leaves_what_it_brought() -> None:
    case = Case()
    case.choose(1, *ALL)
    case.bring(0)

    failed = Verdict(State.FALLBACK, Reason.TRANSFER_FAILED, "cut")
    case.asking.ended(failed, None, another_transport=False)

    assert case.fetch.verified == {0}
