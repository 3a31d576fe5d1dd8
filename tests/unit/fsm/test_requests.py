"""The requests of a session, and ranges of segments."""

import pytest

from netloader.fsm.messages import Request
from netloader.fsm.ranges import are_ranges, ranges_of, segments_in
from netloader.fsm.requests import Requests

FIRST = Request((0, 2))


def test_requests_are_counted_and_remembered() -> None:
    none = Requests()
    one = none.with_next(FIRST)

    assert none.allow(FIRST, 3)
    assert one == Requests(1, frozenset({0, 2}), FIRST)
    assert one.completed() == Requests(1, frozenset({0, 2}))
    assert one.completed().allow(Request((1,), number=2), 3)


@pytest.mark.parametrize(
    "request_",
    [
        *(Request((0,), number=2), Request((1,)), Request((), number=2)),
        *(Request((1, 1), number=2), Request((3,), number=2), Request((-1,), number=2)),
    ],
    ids=str,
)
def test_a_request_that_is_out_of_turn_or_out_of_range_is_not_allowed(request_: Request) -> None:
    requests = Requests().with_next(FIRST)

    assert not requests.allow(Request((1,), number=2), 3)
    assert not requests.completed().allow(request_, 3)


@pytest.mark.parametrize(
    ("segments", "ranges"),
    [((), ()), ((0,), ((0, 1),)), ((0, 1, 2), ((0, 3),)), ((5, 0, 1), ((0, 2), (5, 6)))],
)
def test_segments_travel_as_ranges(
    segments: tuple[int, ...], ranges: tuple[tuple[int, int], ...]
) -> None:
    assert ranges_of(segments) == ranges
    assert are_ranges(ranges, 6)
    assert segments_in(ranges) == set(segments)
