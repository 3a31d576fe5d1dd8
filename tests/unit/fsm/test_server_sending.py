"""The server after its offer: what it sends, whom it doubts, when it is done."""

from dataclasses import replace

import pytest

from netloader.fsm.effects import AbortTransfer, AuditWeights, Send, Settle, StartTransfer, Verdict
from netloader.fsm.events import (
    ConnectionLost,
    DeadlinePassed,
    Event,
    MoreAvailable,
    TransferFailed,
    Transferred,
)
from netloader.fsm.messages import Begin, Complete, Have, Reject, Request, Verified
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.fsm.terms import MAX_LANES
from tests.support.messages import (
    BRIEF,
    DEADLINES,
    DOUBT,
    NBYTES,
    OFFER_READY,
    OPEN_THERE,
    RECEIVED,
    REQUEST,
    ROOT,
    VERIFIED,
    hello,
    said,
)
from tests.unit.fsm.test_server import after, verdict

FIRST = (hello(), OFFER_READY, *OPEN_THERE, Request((0,)), Transferred(65_536))
"""One segment was asked for and sent."""


# -- the request ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segments", "nbytes"),
    [((0, 1, 2), NBYTES), ((1,), 65_536), ((2,), NBYTES - 131_072), ((), 0)],
)
def test_exactly_what_is_asked_for_is_sent(segments: tuple[int, ...], nbytes: int) -> None:
    session, step = after(hello(), OFFER_READY, *OPEN_THERE, Request(segments, 3))

    assert session.state is State.TRANSFER
    assert step.effects == (Send(Begin()), StartTransfer(segments, 3))
    assert session.nbytes == nbytes
    assert session.next_timeout() == DEADLINES.transfer_s(nbytes)


@pytest.mark.parametrize(
    "request_",
    [
        Request((0, 0)),
        Request((1, 0)),
        Request((-1,)),
        Request((3,)),
        Request((0, 2**70)),
        Request((0,), 0),
        Request((0,), MAX_LANES + 1),
    ],
    ids=str,
)
def test_a_request_for_what_was_not_offered_is_a_violation(request_: Request) -> None:
    session, step = after(hello(), OFFER_READY, *OPEN_THERE, request_)

    assert verdict(step).reason is Reason.PROTOCOL_VIOLATION
    assert (session.request, session.nbytes) == (None, 0)


@pytest.mark.parametrize("request_", [REQUEST, Request(())], ids=["for all", "for nothing"])
def test_a_request_before_the_offer_is_a_violation(request_: Request) -> None:
    assert verdict(after(hello(), request_)[1]).reason is Reason.PROTOCOL_VIOLATION


def test_requests_follow_each_other_and_each_has_its_own_deadline() -> None:
    session, step = after(*FIRST)
    assert step.effects == (Send(Complete(65_536)),)
    assert session.next_timeout() == DEADLINES.transfer_s(NBYTES)

    step = session.step(Request((1, 2), 2, 2), 1.0)

    assert step.effects == (Send(Begin(2)), StartTransfer((1, 2), 2))
    assert session.next_timeout() == 1.0 + DEADLINES.transfer_s(NBYTES - 65_536)
    sent = session.step(Transferred(NBYTES - 65_536), 2.0)
    assert sent.effects == (Send(Complete(NBYTES - 65_536, 2)),)
    assert session.step(VERIFIED, 3.0).after is State.DONE


@pytest.mark.parametrize(
    "request_",
    [Request((1, 2)), Request((1, 2), 1, 3), Request((0, 1), 1, 2), Request((), 1, 2)],
    ids=["of the same number", "out of turn", "for a segment again", "for nothing"],
)
def test_requests_come_in_turn_and_go_on(request_: Request) -> None:
    assert verdict(after(*FIRST, request_)[1]).reason is Reason.PROTOCOL_VIOLATION


def test_a_request_waits_for_the_end_of_the_one_before() -> None:
    _, step = after(hello(), OFFER_READY, *OPEN_THERE, Request((0,)), Request((1,), 1, 2))

    assert verdict(step).reason is Reason.PROTOCOL_VIOLATION


def test_a_client_that_asks_for_nothing_more_loses_its_place() -> None:
    _, step = after(*FIRST, DeadlinePassed())

    assert (verdict(step).state, verdict(step).reason) == (State.FALLBACK, Reason.IDLE)


def test_a_client_that_needs_nothing_of_this_source_says_so() -> None:
    _, step = after(hello(), OFFER_READY, Verified(0, 0, ROOT))

    assert step.effects == (Settle(Verdict(State.DONE, Reason.NOT_NEEDED)),)


@pytest.mark.parametrize("verified", [VERIFIED, Verified(0, 0, "another")])
def test_a_client_that_was_sent_nothing_has_verified_nothing(verified: Verified) -> None:
    _, step = after(hello(), OFFER_READY, verified)

    assert verdict(step).reason is Reason.PROTOCOL_VIOLATION


def test_a_part_is_not_all() -> None:
    assert verdict(after(*FIRST, VERIFIED)[1]).reason is Reason.DISAGREEMENT


PARTIAL = replace(OFFER_READY, available=frozenset({0}))


def test_a_server_with_some_segments_says_which_and_which_come_later() -> None:
    session, step = after(hello(), PARTIAL)
    assert step.effects == (Send(replace(BRIEF, availability=((0, 1),))),)

    step = session.step(MoreAvailable(frozenset({0, 2})), 0.0)

    assert step.effects == (Send(Have(((2, 3),))),)
    assert session.step(MoreAvailable(frozenset({2})), 0.0).effects == ()
    for event in OPEN_THERE:
        session.step(event, 0.0)
    assert session.step(Request((0, 2)), 0.0).after is State.TRANSFER
    assert said(session.step(MoreAvailable(frozenset({1})), 0.0)) == [Have(((1, 2),))]


def test_what_comes_while_an_offer_is_prepared_is_in_the_offer() -> None:
    session, step = after(hello(), MoreAvailable(frozenset({1})))
    assert step.effects == ()

    step = session.step(PARTIAL, 0.0)

    assert step.effects == (Send(replace(BRIEF, availability=((0, 2),))),)
    assert session.step(MoreAvailable(frozenset({1})), 0.0).effects == ()


@pytest.mark.parametrize("before", [(), (Request((0,)), Transferred(65_536))], ids=len)
def test_a_request_for_what_is_not_here_is_refused_by_name(before: tuple[Event, ...]) -> None:
    number = 2 if before else 1

    _, step = after(hello(), PARTIAL, *OPEN_THERE, *before, Request((1, 2), 1, number))

    assert said(step) == [Reject("not_available", "segment 1 is not here yet")]
    assert verdict(step).reason is Reason.NOT_AVAILABLE


# -- doubts --------------------------------------------------------------------------------------


def test_a_client_that_found_other_bytes_has_the_weights_audited() -> None:
    _, step = after(hello(), OFFER_READY, *OPEN_THERE, REQUEST, DOUBT)

    doubted = Verdict(State.FALLBACK, Reason.DIGEST_MISMATCH, "segment 1", by_peer=True)
    assert step.effects == (AuditWeights(), AbortTransfer(), Settle(doubted))
    sent = after(hello(), OFFER_READY, *OPEN_THERE, REQUEST, RECEIVED, DOUBT)[1]
    assert sent.effects == step.effects


@pytest.mark.parametrize(
    "events",
    [(DOUBT,), (hello(), DOUBT), (hello(), OFFER_READY, DOUBT)],
    ids=["connected", "preparing", "offered"],
)
def test_a_digest_mismatch_before_a_transfer_starts_no_audit(events: tuple[Event, ...]) -> None:
    assert AuditWeights() not in after(*events)[1].effects


def test_a_refusal_for_another_reason_starts_no_audit() -> None:
    _, step = after(hello(), OFFER_READY, *OPEN_THERE, REQUEST, Reject("transfer_stalled"))

    assert AuditWeights() not in step.effects


# -- the end -------------------------------------------------------------------------------------


def test_a_server_says_when_everything_has_been_sent() -> None:
    session, step = after(hello(), OFFER_READY, *OPEN_THERE, REQUEST, RECEIVED)

    assert (session.state, session.sent) == (State.TRANSFER, True)
    assert step.effects == (Send(Complete(NBYTES)),)


def test_a_server_is_done_when_the_client_has_verified_all_of_it() -> None:
    session, step = after(hello(), OFFER_READY, *OPEN_THERE, REQUEST, RECEIVED, VERIFIED)

    assert step.effects == (Settle(Verdict(State.DONE, Reason.VERIFIED)),)
    assert session.step(ConnectionLost("closed"), 0.0).after is State.DONE


def test_a_client_that_held_everything_is_done_as_well() -> None:
    nothing = (Request((), 1), Transferred(0), Verified(0, 0, ROOT))

    assert after(hello(), OFFER_READY, *OPEN_THERE, *nothing)[0].state is State.DONE


@pytest.mark.parametrize(
    "verified",
    [Verified(2, NBYTES, ROOT), Verified(3, NBYTES - 1, ROOT), Verified(3, NBYTES, "other")],
)
def test_a_client_with_another_count_is_refused_with_both_counts(verified: Verified) -> None:
    _, step = after(hello(), OFFER_READY, *OPEN_THERE, REQUEST, RECEIVED, verified)

    detail = f"the client verified {verified.segments} segments, {verified.nbytes} bytes"
    assert said(step) == [Reject("disagreement", detail)]
    assert verdict(step).reason is Reason.DISAGREEMENT


def test_a_client_cannot_have_verified_what_was_not_sent_yet() -> None:
    _, step = after(hello(), OFFER_READY, *OPEN_THERE, REQUEST, VERIFIED)

    assert verdict(step).reason is Reason.DISAGREEMENT


def test_a_failed_transfer_is_reported_to_the_client() -> None:
    _, step = after(
        hello(), OFFER_READY, *OPEN_THERE, REQUEST, TransferFailed(Reason.TRANSFER_STALLED, "x")
    )

    assert said(step) == [Reject("transfer_stalled", "x")]
