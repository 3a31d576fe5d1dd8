"""Other sources: who announces them, who is told, who dials them."""

from contextlib import ExitStack
from dataclasses import replace

from netloader.config import Endpoint
from netloader.fsm.fetch import MOST_SOURCES
from netloader.fsm.messages import Hello, Reject
from netloader.fsm.reasons import Reason
from netloader.fsm.terms import MAX_OTHER_SOURCES, places
from netloader.io.client import fill
from netloader.io.referrals import Referrals
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    Peer,
    asking,
    contents,
    pretending,
    sealed,
    serving,
    zoo,
)


def test_the_newest_places_are_told_and_never_ones_own() -> None:
    referrals = Referrals()
    for port in (*range(1, MAX_OTHER_SOURCES + 3), 5):
        referrals.note(f"h:{port}")
    referrals.note("")

    told = referrals.besides("h:7")

    assert told[:2] == ("h:5", f"h:{MAX_OTHER_SOURCES + 2}")
    assert len(told) == MAX_OTHER_SOURCES - 1
    assert not {"h:1", "h:7", ""}.intersection(told)


def test_what_is_no_place_is_left_out_and_few_are_taken() -> None:
    texts = ["h:1", "nowhere", "h:1", "h:70000", "", "h:2"]

    assert places(texts) == (Endpoint("h", 1), Endpoint("h", 2))
    assert len(places(f"h:{port}" for port in range(1, 1000))) == MAX_OTHER_SOURCES


def test_a_client_goes_on_to_a_source_that_a_full_one_names() -> None:
    source, target = zoo(1), zoo(50)
    with serving(source) as server:
        other = str(server.endpoint)

        def full(peer: Peer) -> None:
            peer.hear()
            peer.say(Reject("busy", "full", (), 30.0, (other, "nowhere", other)))
            peer.hear()

        with pretending(full) as first:
            outcome = fill(target, [first], IDENTITY, asking())

    assert [(a.source, a.reason) for a in outcome.attempts] == [
        (first, Reason.BUSY),
        (server.endpoint, Reason.VERIFIED),
    ]
    assert contents(target) == contents(source)


def test_a_client_finds_the_end_of_a_chain_that_is_longer_than_what_it_takes_up_at_once() -> None:
    """So many instances start at once: each has its one place taken, and names the next."""
    source, target = zoo(1), zoo(50)
    with ExitStack() as stack:
        named = str(stack.enter_context(serving(source)).endpoint)
        for _ in range(MOST_SOURCES + 4):

            def full(peer: Peer, others: tuple[str, ...] = (named,)) -> None:
                peer.hear()
                peer.say(Reject("busy", "full", (), 30.0, others))
                peer.hear()

            first = stack.enter_context(pretending(full))
            named = str(first)
        patient = asking(deadlines=replace(FAST, queue_s=60))
        outcome = fill(target, [first], IDENTITY, patient)

    assert outcome.ok
    assert len(outcome.attempts) == MOST_SOURCES + 5
    assert contents(target) == contents(source)


def test_sources_that_name_each_other_are_asked_once() -> None:
    with ExitStack() as stack:
        named: list[str] = []

        def refuse(peer: Peer) -> None:
            peer.hear()
            peer.say(Reject("not_serving", "", (), 0.0, tuple(named)))
            peer.hear()

        ends = [stack.enter_context(pretending(refuse)) for _ in range(3)]
        named += map(str, ends)
        outcome = fill(zoo(1), ends[:1], IDENTITY, asking())

    assert [attempt.source for attempt in outcome.attempts] == ends
    assert outcome.reason is Reason.NO_SOURCE
    assert len(ends) < MOST_SOURCES


def test_a_server_names_the_clients_that_will_serve() -> None:
    with serving(zoo(1)) as server:
        sealed(server)
        serving_too = asking(serves_at="10.0.0.9:19374")
        assert fill(zoo(50), [server.endpoint], IDENTITY, serving_too).ok
        with Peer.call(server.endpoint) as peer:
            offer = peer.offered()

    assert offer.other_sources == ("10.0.0.9:19374",)


def test_a_client_says_where_it_will_serve() -> None:
    heard: list[object] = []

    def listen(peer: Peer) -> None:
        heard.append(peer.hear())
        peer.say(Reject("not_serving"))
        peer.hear()

    with pretending(listen) as endpoint:
        fill(zoo(1), [endpoint], IDENTITY, asking(serves_at=Endpoint("10.0.0.9", 1)))

    (hello,) = heard
    assert isinstance(hello, Hello)
    assert hello.serves_at == "10.0.0.9:1"
