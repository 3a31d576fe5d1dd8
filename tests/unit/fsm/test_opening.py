"""Opening a transport: candidates in order, the answer, and what either side refuses."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from netloader.fsm.client_session import ClientSession
from netloader.fsm.effects import ChooseSegments, JoinTransport, OpenTransport, Send
from netloader.fsm.events import (
    Connected,
    Event,
    TransportJoined,
    TransportReady,
    TransportRefused,
)
from netloader.fsm.messages import Answer, Candidate, Offer, Opened, Reject, Request, Unopened
from netloader.fsm.reasons import Reason
from netloader.fsm.server_session import ServerSession
from netloader.fsm.session import Step
from netloader.fsm.states import State
from netloader.fsm.terms import MAX_CANDIDATES, MAX_RENDEZVOUS_BYTES
from tests.support.messages import (
    ANSWER,
    ASK,
    DEADLINES,
    GUARDED,
    OFFER,
    OFFER_READY,
    OPEN_THERE,
    PROOF,
    REQUEST,
    START,
    TWO,
    client,
    hello,
    proven,
    said,
    server,
)

LONG = "x" * (MAX_RENDEZVOUS_BYTES + 1)
REFUSED = TransportRefused("hccl", Reason.TRANSFER_STALLED, "one device")
TWO_READY = replace(OFFER_READY, candidates=TWO.candidates)


def client_after(*events: Event) -> tuple[ClientSession, Step]:
    """A client, and its answer to the last event, which came at time 1."""
    session = client()
    return session, play(session, (Connected(), *events))


def server_after(*events: Event) -> tuple[ServerSession, Step]:
    """A server that was greeted, and its answer to the last event."""
    session = server()
    return session, play(session, (Connected(), hello(), *events))


def play(session: ClientSession | ServerSession, events: Iterable[Event]) -> Step:
    for event in events:
        step = session.step(event, 1.0)
    return step


# -- the client ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found",
    [
        (REFUSED,),
        (TransportReady("hccl"), REFUSED),
        (TransportReady("hccl"), TransportJoined("hccl"), Unopened("hccl", "one device")),
        (TransportReady("hccl"), Unopened("hccl", "one device"), REFUSED),
        (TransportReady("hccl"), Unopened("hccl"), TransportJoined("hccl")),
    ],
)
def test_a_candidate_that_either_side_cannot_open_is_followed_by_the_next(
    found: tuple[Event, ...],
) -> None:
    session, step = client_after(TWO, *found)

    assert step.effects == (OpenTransport(TWO, "tcp"),)
    assert session.state is State.VALIDATE
    step = session.step(TransportReady("tcp", {"key": "1"}), 2.0)
    assert step.effects == (Send(ANSWER), JoinTransport("tcp"))


def test_each_candidate_has_a_deadline_of_its_own() -> None:
    session, _ = client_after(TWO)
    session.step(REFUSED, 50.0)

    assert session.next_timeout() == 50.0 + DEADLINES.validate_s


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ((replace(REFUSED, transport="tcp"),), "transfer_stalled"),
        ((TransportReady("tcp"), TransportJoined("tcp"), Unopened("tcp", "x")), "transfer_failed"),
        ((TransportReady("tcp"), Unopened("tcp", "x"), TransportJoined("tcp")), "transfer_failed"),
    ],
)
def test_a_client_without_another_candidate_gives_up_with_clean_weights(
    found: tuple[Event, ...], reason: str
) -> None:
    session, step = client_after(OFFER, *found)

    assert [message.reason for message in said(step) if isinstance(message, Reject)] == [reason]
    assert session.verdict is not None
    assert not session.verdict.weights_dirty


def test_nothing_is_asked_for_before_both_ends_are_open() -> None:
    session, step = client_after(OFFER, TransportReady("tcp"), TransportJoined("tcp"))
    assert step.effects == ()

    step = session.step(Opened("tcp"), 1.0)

    assert step.effects == (ChooseSegments((0, 1, 2), 1, frozenset({0, 1, 2})),)


def test_a_reply_about_a_candidate_that_was_given_up_is_ignored_once() -> None:
    session, _ = client_after(TWO, TransportReady("hccl"), REFUSED, TransportReady("tcp"))

    assert session.step(Opened("hccl"), 1.0).effects == ()
    assert session.step(Opened("hccl"), 1.0).after is State.FALLBACK


@pytest.mark.parametrize("reply", [Opened("tcp"), Unopened("tcp"), Opened("hccl")])
def test_a_reply_without_an_answer_is_a_violation(reply: Event) -> None:
    _, step = client_after(TWO, reply)

    assert said(step)[0] == Reject(
        "protocol_violation", f"{type(reply).__name__.lower()} in validate"
    )


@pytest.mark.parametrize(
    ("candidates", "flaw"),
    [
        ((), "0 transports; 1 to 8 are allowed"),
        (TWO.candidates * MAX_CANDIDATES, "16 transports; 1 to 8 are allowed"),
        (OFFER.candidates * 2, "a transport is offered twice"),
        ((Candidate("tcp", {LONG: ""}),), "a rendezvous of more than 4096 bytes"),
    ],
)
def test_candidates_that_no_server_offers_are_refused(
    candidates: tuple[Candidate, ...], flaw: str
) -> None:
    offer: Offer = replace(TWO, candidates=candidates)
    _, step = client_after(offer)

    assert said(step) == [Reject("protocol_violation", flaw)]


# -- the server ----------------------------------------------------------------------------------


def test_an_answer_reaches_the_transport_and_the_client_hears_what_came_of_it() -> None:
    session, step = server_after(TWO_READY, Answer("hccl", {"key": "2"}))
    assert step.effects == (JoinTransport("hccl", {"key": "2"}),)
    assert said(session.step(REFUSED, 1.0)) == [Unopened("hccl", "one device")]

    assert session.step(ANSWER, 1.0).effects == (JoinTransport("tcp", {"key": "1"}),)
    assert said(session.step(TransportJoined("tcp"), 1.0)) == [Opened("tcp")]
    assert session.step(REQUEST, 1.0).after is State.TRANSFER


def test_the_last_candidate_that_cannot_be_joined_ends_the_session_at_once() -> None:
    refused = TransportRefused("tcp", Reason.TRANSFER_STALLED, "joining the group")
    session, step = server_after(TWO_READY, ANSWER, refused)

    assert said(step) == [Reject("transfer_stalled", "joining the group")]
    assert session.state is State.FALLBACK


@pytest.mark.parametrize("end", [TransportJoined("hccl"), REFUSED])
def test_an_answer_that_was_taken_back_is_not_replied_to(end: Event) -> None:
    session, step = server_after(TWO_READY, Answer("hccl"), ANSWER)
    assert step.effects == ()

    assert session.step(end, 1.0).effects == (JoinTransport("tcp", {"key": "1"}),)


@pytest.mark.parametrize(
    "answers",
    [
        (Answer("gloo"),),
        (Answer("tcp", {"key": LONG}),),
        (ANSWER, TransportJoined("tcp"), ANSWER),
        (ANSWER, Answer("hccl")),
        (*OPEN_THERE, REQUEST, Answer("hccl")),
    ],
    ids=["not offered", "too long", "twice", "out of order", "after a request"],
)
def test_an_answer_out_of_turn_is_a_violation(answers: tuple[Event, ...]) -> None:
    session, step = server_after(TWO_READY, *answers)

    assert session.state is State.FALLBACK
    assert "answer" in str(said(step)[0])


@pytest.mark.parametrize("before", [(), (ANSWER,), (*OPEN_THERE, Answer("gloo"))])
def test_a_request_before_a_transport_is_open_is_a_violation(before: tuple[Event, ...]) -> None:
    ready = replace(OFFER_READY, candidates=(*OFFER_READY.candidates, Candidate("gloo")))
    session, _ = server_after(ready, *before, Request(ASK.segments))

    assert session.state is State.FALLBACK


def test_with_a_token_only_the_clients_own_answer_is_taken() -> None:
    for answer, state in (
        (proven(ANSWER, PROOF), State.VALIDATE),
        (ANSWER, State.FALLBACK),
        (replace(proven(ANSWER, PROOF), rendezvous={"key": "2"}), State.FALLBACK),
    ):
        session = server(GUARDED)
        step = play(session, (Connected(), START, PROOF, OFFER_READY, answer))

        assert session.state is state
        if state is State.FALLBACK:
            assert [m.reason for m in said(step) if isinstance(m, Reject)] == ["auth_failed"]
