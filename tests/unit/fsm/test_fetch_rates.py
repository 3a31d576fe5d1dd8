"""A fetch from sources of different speeds: who gets how much, and who is dropped."""

import pytest

from netloader.fsm.fetch_events import (
    Conclude,
    Dial,
    Drop,
    FetchEffect,
    Finish,
    Request,
    SegmentVerified,
    Spare,
)
from tests.unit.fsm.play import COUNT, DONE, Play


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


# -- a folder of this host beside peers ----------------------------------------------------------


def beside(own_s: float, peer_s: float) -> tuple[Play, list[FetchEffect]]:
    """A folder and a peer after their first requests; what is wanted then. The folder is first."""
    play = Play(sources=2, own=1)
    assert [effect.source for effect in play.first if isinstance(effect, Dial)] == [0, 1]
    requests = [play.offers(key)[0] for key in (0, 1)]
    wanted: list[FetchEffect] = []
    for request, pace_s in zip(requests, (own_s, peer_s), strict=True):
        assert isinstance(request, Request)
        assert len(request.segments) <= COUNT // 16, "small, to be measured"
        play.delivers(request.source, request.segments, 0.0)
        wanted += play.completes(request.source, pace_s * len(request.segments))
    return play, wanted


def test_a_peer_that_is_no_faster_than_the_folder_is_asked_for_nothing_more() -> None:
    play, wanted = beside(own_s=0.1, peer_s=0.1)

    assert wanted[-1] == Spare(1, 0.1, 0.1)
    asked = wanted[0]
    while isinstance(asked, Request):
        assert asked.source == 0
        play.delivers(0, asked.segments, 0.1)
        asked, *_ = play.completes(0)
    assert asked == Conclude(0)


def test_a_peer_that_is_faster_than_the_folder_goes_on_beside_it() -> None:
    _, wanted = beside(own_s=0.2, peer_s=0.1)

    assert [effect.source for effect in wanted if isinstance(effect, Request)] == [0, 1]


def test_when_the_folder_fails_the_peer_that_was_left_alone_goes_on() -> None:
    play, _ = beside(own_s=0.1, peer_s=1.0)

    (request,) = play.fails(0)

    assert isinstance(request, Request)
    assert request.source == 1


def test_when_the_folder_becomes_slow_the_peer_takes_over() -> None:
    play, _ = beside(own_s=0.1, peer_s=0.2)

    due = play.fetch.next_timeout()

    assert due is not None
    dropped, request = play.fetch.handle_timeout(due + 100)
    assert dropped == Drop(0)
    assert isinstance(request, Request)
    assert request.source == 1


def test_what_a_peer_does_after_its_last_byte_does_not_count() -> None:
    play = Play(sources=2, own=1)
    first = [play.offers(key)[0] for key in (0, 1)]
    for request in first:
        assert isinstance(request, Request)
        play.delivers(request.source, request.segments, 0.0)
    play.completes(0, 0.4)
    play.now += 60.0  # it looks through all its weights

    wanted = play.completes(1, 0.1)

    assert [effect.source for effect in wanted if isinstance(effect, Request)] == [1]
