"""Sources that a feed names while a fill runs."""

import threading
from collections.abc import Callable, Sequence

import pytest

from netloader.config import Endpoint
from netloader.fsm.messages import Reject
from netloader.fsm.reasons import Reason
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import (
    IDENTITY,
    SOON_S,
    Peer,
    asking,
    contents,
    pretending,
    serving,
    zoo,
)

Found = Callable[[Sequence[Endpoint]], None]


class Feed:
    """Names sources when a test says so."""

    def __init__(self) -> None:
        self.found: Found | None = None
        self.subscribed = threading.Event()
        self.ended = threading.Event()

    def subscribe(self, found: Found) -> Callable[[], None]:
        self.found = found
        self.subscribed.set()
        return self.ended.set


@pytest.mark.usefixtures("driver")
def test_a_source_that_is_found_later_takes_over_from_one_that_fails() -> None:
    source, target, feed = zoo(1), zoo(50), Feed()
    with serving(source) as server:

        def failing(peer: Peer) -> None:
            peer.hear()
            assert feed.subscribed.wait(SOON_S)
            assert feed.found is not None
            feed.found([first, server.endpoint, server.endpoint])
            peer.say(Reject("not_serving", "", (), 0.0, ()))
            peer.hear()

        with pretending(failing) as first:
            outcome = fill(target, [first], IDENTITY, asking(feed=feed))

    assert [(a.source, a.reason) for a in outcome.attempts] == [
        (first, Reason.NOT_SERVING),
        (server.endpoint, Reason.VERIFIED),
    ]
    assert contents(target) == contents(source)
    assert feed.ended.is_set(), "nobody listens any more"
    assert feed.found is not None
    feed.found([server.endpoint])  # a late word is harmless


def test_what_is_no_feed_is_refused() -> None:
    with pytest.raises(TypeError, match="feed is of type int; give an object with the method"):
        asking(feed=7)
