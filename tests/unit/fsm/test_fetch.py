"""A fetch: who is asked for what, when, and what happens to the rest."""

import copy
import math

import pytest

from netloader.errors import LocalProtocolError
from netloader.fsm.fetch import MOST_KNOWN, MOST_SOURCES
from netloader.fsm.fetch_events import (
    Available,
    CancelRequested,
    Completed,
    Conclude,
    Dial,
    Drop,
    Finish,
    Offered,
    Request,
    SegmentVerified,
    SourcesFound,
    Wait,
)
from netloader.fsm.reasons import Reason
from netloader.fsm.source import MAX_RETRY_AFTER_S, MIN_RETRY_AFTER_S, Source
from netloader.fsm.states import State
from tests.unit.fsm.play import ALL, COUNT, DONE, NO_SOURCE, OTHER, ROOT, Play


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
