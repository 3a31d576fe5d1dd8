"""A fetch: who is asked for what, when, and what happens to the rest."""

import copy
import math

import pytest

from netloader.errors import LocalProtocolError
from netloader.fsm.fetch import MOST_KNOWN, MOST_SOURCES, Fetch, FetchOptions
from netloader.fsm.fetch_events import (
    Available,
    Busy,
    CancelRequested,
    Completed,
    Conclude,
    Dial,
    Drop,
    FetchEffect,
    Finish,
    Offered,
    Request,
    Root,
    SegmentVerified,
    SourceEnded,
    SourceFailed,
    SourcesFound,
    Wait,
)
from netloader.fsm.reasons import Reason
from netloader.fsm.source import MAX_RETRY_AFTER_S, MIN_RETRY_AFTER_S, Source
from netloader.fsm.states import State

COUNT = 64
ALL = frozenset(range(COUNT))
ROOT = Root("blake3", 1 << 20, "one", COUNT)
OTHER = Root("blake3", 1 << 20, "two", COUNT)
DONE = Finish(State.DONE, Reason.VERIFIED)
NO_SOURCE = Finish(State.FALLBACK, Reason.NO_SOURCE)


class Play:
    """A fetch and a clock."""

    def __init__(self, sources: int = 1, parallel: int = 1, queue_s: float = 100.0) -> None:
        self.now = 0.0
        self.fetch = Fetch(FetchOptions(parallel, queue_s, stall_s=15.0), self.now)
        self.first = self.fetch.step(SourcesFound(tuple(range(sources))), self.now)

    def offers(self, key: int, root: Root = ROOT, has: frozenset[int] = ALL) -> list[FetchEffect]:
        return list(self.fetch.step(Offered(key, root, has), self.now))

    def delivers(self, key: int, segments: tuple[int, ...], pace_s: float) -> list[FetchEffect]:
        effects: list[FetchEffect] = []
        for segment in segments:
            self.now += pace_s
            effects += self.fetch.step(SegmentVerified(key, segment), self.now)
        return effects

    def completes(self, key: int) -> list[FetchEffect]:
        return list(self.fetch.step(Completed(key), self.now))

    def fails(self, key: int, reason: Reason = Reason.CONNECTION_LOST) -> list[FetchEffect]:
        failure = SourceFailed(key, reason, another_transport=True)
        return [*self.fetch.step(failure, self.now), *self.ends(key)]

    def busy(self, key: int, retry_after_s: float) -> list[FetchEffect]:
        return [*self.fetch.step(Busy(key, retry_after_s), self.now), *self.ends(key)]

    def ends(self, key: int) -> list[FetchEffect]:
        return list(self.fetch.step(SourceEnded(key), self.now))


def test_one_source_at_a_time_is_asked_for_all_and_told_when_it_is_here() -> None:
    play = Play()

    assert play.first == (Dial(0, stepped_down=False),)
    assert play.offers(0) == [Request(0, tuple(range(COUNT)))]
    assert play.delivers(0, tuple(range(COUNT)), 0.1) == []
    assert play.completes(0) == [Conclude(0)]
    assert play.ends(0) == [DONE]


def test_a_single_source_is_asked_for_all_however_many_may_be_asked_at_once() -> None:
    assert Play(parallel=4).offers(0) == [Request(0, tuple(range(COUNT)))]


def test_a_source_that_was_busy_has_a_share_left_when_it_comes() -> None:
    play = Play(sources=2, parallel=2)
    play.busy(1, 1.0)

    (first,) = play.offers(0)

    assert isinstance(first, Request)
    assert len(first.segments) == COUNT // 4


def test_what_the_store_holds_already_is_not_asked_for() -> None:
    play = Play()

    asked = play.fetch.step(Offered(0, ROOT, ALL, held=frozenset(range(60))), play.now)

    assert asked == (Request(0, (60, 61, 62, 63)),)


def test_where_a_session_carries_one_request_the_next_share_has_another_session() -> None:
    play = Play(sources=2, parallel=2)
    (first,) = play.fetch.step(Offered(0, ROOT, ALL, repeatable=False), play.now)
    assert isinstance(first, Request)
    assert len(first.segments) == COUNT // 2, "an even share: a session costs time to begin"
    play.delivers(0, first.segments, 0.1)

    assert play.completes(0) == [Conclude(0)]
    assert play.ends(0) == [Dial(0, stepped_down=False)]


def test_without_a_source_the_fetch_is_over_at_once() -> None:
    assert Play(sources=0).first == (NO_SOURCE,)


def test_the_next_source_is_asked_for_what_is_missing() -> None:
    play = Play(sources=2)
    play.offers(0)
    play.delivers(0, (0, 1, 2), 0.1)

    assert play.fails(0) == [Dial(1, stepped_down=False)]
    assert play.offers(1) == [Request(1, tuple(range(3, COUNT)))]


def test_shares_get_smaller_towards_the_end() -> None:
    play = Play(parallel=2, sources=2)
    sizes, asked = [], play.offers(0)
    while isinstance(asked[0], Request):
        sizes.append(len(asked[0].segments))
        play.delivers(0, asked[0].segments, 0.01)
        asked = play.completes(0)

    assert sizes[0] == COUNT // 4
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    assert sum(sizes) == COUNT


def slow_one() -> Play:
    """Source 0 has done its work; source 1 has half of its share left and needs 10 s for each."""
    play = Play(parallel=2, sources=2)
    (first,) = play.offers(1)
    assert isinstance(first, Request)
    asked = play.offers(0)
    play.delivers(1, first.segments[:8], 10.0)
    while asked:
        assert isinstance(asked[0], Request)
        play.delivers(0, asked[0].segments, 0.1)
        asked = play.completes(0)
    return play


def test_what_is_left_of_a_slow_source_is_asked_of_one_that_waits_for_work() -> None:
    play = slow_one()

    assert play.fetch.handle_timeout(play.now) == (Drop(1),)
    assert play.fetch.handle_timeout(play.now + 100) == (), "while it may still write"
    assert play.ends(1) == [Request(0, tuple(range(8, 16)))]


def test_a_segment_that_a_dropped_source_completes_is_not_requested_again() -> None:
    play = slow_one()
    play.fetch.handle_timeout(play.now)

    play.delivers(1, (8,), 1.0)

    assert play.ends(1) == [Request(0, tuple(range(9, 16)))]


def raced(*paces_s: float) -> tuple[float, list[FetchEffect]]:
    """When sources of such speeds have filled the store, and which were dropped on the way."""
    play = Play(parallel=2, sources=len(paces_s), queue_s=0.0)
    under_way: dict[int, list[tuple[float, int]]] = {}
    dropped: list[FetchEffect] = []
    todo = [effect for key in range(len(paces_s)) for effect in play.offers(key)]
    while True:
        for effect in todo:
            match effect:
                case Request():
                    times = [play.now + paces_s[effect.source] * (i + 1) for i in range(COUNT)]
                    under_way[effect.source] = list(zip(times, effect.segments, strict=False))
                case Drop() | Conclude():
                    under_way.pop(effect.source, None)
                    dropped += [effect] if isinstance(effect, Drop) else []
                    todo += play.ends(effect.source)
                case Finish():
                    assert effect == DONE
                    return play.now, dropped
        key = min(under_way, key=lambda key: under_way[key][0])
        due = play.fetch.next_timeout()
        if due is not None and due <= under_way[key][0][0]:
            play.now = max(due, play.now)
            todo = list(play.fetch.handle_timeout(play.now))
            continue
        play.now, segment = under_way[key].pop(0)
        todo = list(play.fetch.step(SegmentVerified(key, segment), play.now))
        if not under_way[key]:
            del under_way[key]
            todo += play.completes(key)


def test_two_sources_of_one_speed_need_half_the_time() -> None:
    took, dropped = raced(1.0, 1.0)

    assert took == COUNT / 2
    assert dropped == []


def test_a_source_that_is_a_little_slower_still_helps() -> None:
    took, dropped = raced(1.0, 1.5)

    assert took < 0.65 * COUNT
    assert dropped == []


@pytest.mark.parametrize("slow_s", [10.0, 1000.0])
def test_a_much_slower_source_does_not_delay_the_fetch(slow_s: float) -> None:
    took, dropped = raced(1.0, slow_s)

    assert took <= COUNT + 1
    assert dropped == [Drop(1)]


def test_a_source_with_another_root_is_asked_when_nothing_else_is_left() -> None:
    play = Play(parallel=2, sources=2)
    play.offers(0)

    assert play.offers(1, OTHER) == [Drop(1)]
    assert play.ends(1) == []
    assert play.fails(0) == [Dial(1, stepped_down=False)]
    (request,) = play.offers(1, OTHER)
    assert isinstance(request, Request)
    assert play.fetch.root == OTHER


def test_with_another_root_all_starts_over() -> None:
    play = Play(sources=2)
    play.offers(0)
    play.delivers(0, (0, 1, 2), 0.1)
    play.fails(0)

    assert play.offers(1, OTHER) == [Request(1, tuple(range(COUNT)))]
    assert play.fetch.verified == set()


def test_a_transport_that_could_not_begin_is_replaced_once() -> None:
    play = Play()

    assert play.fails(0, Reason.TRANSFER_FAILED) == [Dial(0, stepped_down=True)]
    assert play.fails(0, Reason.TRANSFER_FAILED) == [NO_SOURCE]


@pytest.mark.parametrize(
    ("said", "waited"),
    [
        (5.0, 5.0),
        (0.0, MIN_RETRY_AFTER_S),
        (-1.0, MIN_RETRY_AFTER_S),
        (1e9, MAX_RETRY_AFTER_S),
        (math.inf, MAX_RETRY_AFTER_S),
        (math.nan, MAX_RETRY_AFTER_S),
    ],
)
def test_the_pause_before_a_retry_is_the_sources_within_bounds(said: float, waited: float) -> None:
    play = Play()

    assert play.busy(0, said) == [Wait((0,), waited)]
    assert play.fetch.next_timeout() == waited


def test_a_busy_source_is_tried_once_more_when_the_queue_time_is_over() -> None:
    play = Play(queue_s=3.0)
    play.busy(0, 2.0)
    play.now = 2.0
    play.fetch.handle_timeout(play.now)

    assert play.busy(0, 2.0) == [Wait((0,), 3.0)]
    play.now = 3.0
    assert play.fetch.handle_timeout(play.now) == (Dial(0, stepped_down=False),)
    assert play.busy(0, 2.0) == [NO_SOURCE]


def test_sources_that_are_due_at_about_the_same_time_are_asked_in_one_round() -> None:
    play = Play(sources=3, parallel=3)
    for key, pause in enumerate((1.0, 1.3, 9.0)):
        play.busy(key, pause)

    dials = play.fetch.handle_timeout(1.0)

    assert dials == (Dial(0, stepped_down=False), Dial(1, stepped_down=False))


def test_a_source_that_has_nothing_more_is_given_up_after_the_stall_deadline() -> None:
    play = Play()
    play.offers(0, has=frozenset({0}))
    play.delivers(0, (0,), 1.0)

    assert play.completes(0) == []
    assert play.fetch.next_timeout() == play.now + 15.0
    assert play.fetch.handle_timeout(play.now + 15.0) == (Drop(0),)
    assert play.ends(0) == [NO_SOURCE]


def test_a_source_that_has_more_is_asked_for_it() -> None:
    play = Play()
    play.offers(0, has=frozenset())

    asked = play.fetch.step(Available(0, frozenset({3, 5})), play.now)

    assert asked == (Request(0, (3, 5)),)


def test_a_cancelled_fetch_ends_when_nothing_writes_any_more() -> None:
    play = Play(sources=2, parallel=2)
    play.offers(0)

    assert play.fetch.step(CancelRequested(Reason.STOPPED), 0.0) == (Drop(0), Drop(1))
    assert play.ends(1) == []
    assert play.fetch.next_timeout() is None
    assert play.ends(0) == [Finish(State.FALLBACK, Reason.STOPPED)]
    assert play.fetch.step(SourcesFound((7,)), 0.0) == ()


def test_a_source_that_is_found_late_is_asked_too() -> None:
    play = Play(sources=2, parallel=3)
    play.offers(0)

    assert play.fetch.step(SourcesFound((0, 2)), 1.0) == (Dial(2, stepped_down=False),)


def test_busy_sources_leave_room_for_those_that_they_name() -> None:
    play = Play()

    for key in range(4 * MOST_SOURCES):
        assert play.fetch.room() == MOST_SOURCES - 1, "all others rest"
        play.fetch.step(SourcesFound((key + 1,)), play.now)
        asked = play.busy(key, 30.0)
        assert Dial(key + 1, stepped_down=False) in asked


def test_failed_sources_that_name_others_without_end_are_followed_only_so_far() -> None:
    play = Play()

    for key in range(MOST_SOURCES - 1):
        assert play.fetch.room() == MOST_SOURCES - 1 - key
        play.fetch.step(SourcesFound((key + 1,)), play.now)
        play.fails(key)

    assert play.fetch.room() == 0


def test_busy_sources_that_name_others_without_end_are_followed_only_so_far() -> None:
    play = Play()

    for key in range(MOST_KNOWN - 1):
        play.fetch.step(SourcesFound((key + 1,)), play.now)
        play.busy(key, 30.0)

    assert play.fetch.room() == 0


def test_more_sources_than_are_taken_up_may_be_given_from_the_beginning() -> None:
    assert Play(sources=2 * MOST_SOURCES).fetch.room() == 0


def test_a_step_looks_at_no_source_that_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(sources=1000)
    for key in range(999):
        play.busy(key, 30.0)
    looked: list[int] = []
    due = Source.due

    def noted(source: Source) -> float:
        looked.append(source.key)
        return due(source)

    monkeypatch.setattr(Source, "due", noted)

    play.offers(999)
    play.delivers(999, (0, 1, 2), 0.1)

    assert play.fetch.next_timeout() is not None
    assert set(looked) <= {999}


def test_sources_that_rest_are_asked_again_in_the_order_of_their_numbers() -> None:
    play = Play(sources=3, parallel=3)
    for key, pause in enumerate((1.2, 1.1, 1.0)):
        play.busy(key, pause)

    dials = play.fetch.handle_timeout(1.0)

    assert dials == tuple(Dial(key, stepped_down=False) for key in range(3))


def test_an_event_that_cannot_happen_raises() -> None:
    play = Play()
    play.offers(0, has=frozenset({0}))

    with pytest.raises(LocalProtocolError, match="no source 9"):
        play.fetch.step(Completed(9), 0.0)
    with pytest.raises(LocalProtocolError, match="segment 1 was not asked of source 0"):
        play.fetch.step(SegmentVerified(0, 1), 0.0)
    with pytest.raises(LocalProtocolError, match="source 0 did not send all"):
        play.completes(0)
    with pytest.raises(LocalProtocolError, match="Offered cannot happen in RECEIVING"):
        play.offers(0)


def test_a_copy_is_independent() -> None:
    play = Play()
    play.offers(0)
    twin = copy.copy(play.fetch)

    twin.step(SegmentVerified(0, 0), 1.0)

    assert play.fetch.verified == set()
    assert twin.verified == {0}
