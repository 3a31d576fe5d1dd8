"""The client after the offer: what it asks for, and when it has received all of it."""

from dataclasses import replace

import pytest

from netloader.errors import LocalProtocolError
from netloader.fsm.effects import (
    AbortTransfer,
    ChooseSegments,
    NoteAvailable,
    Send,
    Settle,
    StartTransfer,
    Verdict,
)
from netloader.fsm.events import (
    Ask,
    ConnectionLost,
    DeadlinePassed,
    Event,
    Finish,
    TransferFailed,
    Transferred,
)
from netloader.fsm.manifest import root_digest
from netloader.fsm.messages import Begin, Complete, Have, Reject, Request, Verified
from netloader.fsm.ranges import Ranges
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.fsm.terms import FetchSpec
from tests.support.messages import (
    ASK,
    DEADLINES,
    FINISHED,
    NBYTES,
    OFFER,
    OPEN_HERE,
    RECEIVED,
    REQUEST,
    RESUMING,
    ROOT,
    VERIFIED,
    WISH,
    client,
    said,
)
from tests.unit.fsm.test_client import after, verdict

PART = (
    *(OFFER, *OPEN_HERE, Ask((0,)), Begin()),
    *(Transferred(65_536), Complete(65_536)),
)
"""One segment was asked for and has come."""
THERE = frozenset({0, 1, 2})
LOST = Verdict(State.FALLBACK, Reason.CONNECTION_LOST, "reset", weights_dirty=True)
DONE = Settle(Verdict(State.DONE, Reason.VERIFIED, weights_dirty=True))


@pytest.mark.parametrize(
    ("spec", "missing", "nbytes"),
    [(WISH, (0, 1, 2), NBYTES), (RESUMING, (0, 2), NBYTES - 65_536), (FINISHED, (), 0)],
    ids=["all", "the rest", "nothing"],
)
def test_a_client_asks_for_what_it_does_not_hold(
    spec: FetchSpec, missing: tuple[int, ...], nbytes: int
) -> None:
    session, step = after(OFFER, *OPEN_HERE, spec=spec)
    assert (session.state, step.effects) == (State.VALIDATE, (ChooseSegments(missing, 1, THERE),))

    step = session.step(Ask(missing), 0.0)

    assert step.effects == (Send(Request(missing, 2)),)
    assert session.nbytes == nbytes
    assert session.step(Begin(), 0.0).effects == (StartTransfer(missing, 2),)


def test_what_is_held_from_other_bytes_is_asked_for_again() -> None:
    digests = ("digest-0", "digest-1", "changed")
    offer = replace(OFFER, segment_digests=digests, root=root_digest(digests))

    _, step = after(offer, *OPEN_HERE, spec=RESUMING)

    assert step.effects == (ChooseSegments((0, 1, 2), 1, THERE),)


@pytest.mark.parametrize("segments", [(1, 0), (0, 0), (-1,), (3,)], ids=str)
def test_an_owner_cannot_ask_for_what_was_not_offered(segments: tuple[int, ...]) -> None:
    session, _ = after(OFFER, *OPEN_HERE)

    with pytest.raises(LocalProtocolError, match="cannot be asked for now"):
        session.step(Ask(segments), 0.0)

    assert session.request is None


def test_a_source_that_is_not_needed_is_left_with_clean_weights() -> None:
    _, step = after(OFFER, *OPEN_HERE, Finish())

    assert step.effects == (
        Send(Verified(0, 0, ROOT)),
        Settle(Verdict(State.DONE, Reason.NOT_NEEDED)),
    )


def test_the_next_request_follows_when_one_is_complete_and_has_its_own_deadline() -> None:
    session, step = after(*PART)
    assert step.effects == (ChooseSegments((1, 2), 2, THERE),)
    assert session.next_timeout() == DEADLINES.transfer_s(NBYTES)

    step = session.step(Ask((1, 2)), 1.0)

    assert step.effects == (Send(Request((1, 2), 2, 2)),)
    assert session.next_timeout() == 1.0 + DEADLINES.transfer_s(NBYTES - 65_536)
    assert session.step(Begin(2), 2.0).effects == (StartTransfer((1, 2), 2),)
    session.step(Transferred(NBYTES - 65_536), 3.0)
    assert session.step(Complete(NBYTES - 65_536, 2), 3.0).effects == (
        ChooseSegments((), 3, THERE),
    )
    assert session.step(Finish(), 3.0).effects == (Send(VERIFIED), DONE)


def test_no_segment_is_asked_for_twice() -> None:
    session, _ = after(*PART)

    for again in (Ask((0,)), Ask(())):
        with pytest.raises(LocalProtocolError, match="cannot be asked for now"):
            session.step(again, 0.0)


@pytest.mark.parametrize(
    "words",
    [
        (Begin(),),
        (Begin(3),),
        (Complete(NBYTES),),
        (Complete(65_536, 2),),
        (Begin(2), Complete(NBYTES - 65_536)),
        (Begin(2), Complete(NBYTES - 65_536, 3)),
    ],
    ids=[
        *("begin of the first", "begin of a third", "complete of the first", "complete too early"),
        *("complete of the first after begin", "complete of a third"),
    ],
)
def test_an_answer_to_another_request_is_a_violation(words: tuple[Event, ...]) -> None:
    _, step = after(*PART, Ask((1, 2)), *words)

    assert verdict(step).reason is Reason.PROTOCOL_VIOLATION


def test_a_client_cannot_finish_in_the_middle_of_a_request() -> None:
    session, _ = after(OFFER, *OPEN_HERE, ASK, Begin())

    with pytest.raises(LocalProtocolError, match="request 1 is not complete"):
        session.step(Finish(), 0.0)


def test_a_client_that_was_cut_off_when_it_had_all_may_finish_but_ask_no_more() -> None:
    nothing = (Ask(()), Begin(), Transferred(0), Complete(0))
    cut = (OFFER, *OPEN_HERE, *nothing, ConnectionLost("reset"))

    assert after(*cut, Finish(), spec=FINISHED)[0].state is State.DONE
    assert after(*cut, Ask((1, 2)), spec=FINISHED)[1].effects == (AbortTransfer(), Settle(LOST))


def test_a_client_that_was_cut_off_before_it_had_all_does_not_wait() -> None:
    before = (OFFER, *OPEN_HERE, Ask((0,)), Begin(), Complete(65_536))

    assert after(*PART, ConnectionLost("reset"))[1].effects == (AbortTransfer(), Settle(LOST))
    step = after(*before, ConnectionLost("reset"), Transferred(65_536))[1]
    assert step.effects == (AbortTransfer(), Settle(LOST))


def test_a_client_is_told_of_more_segments_once() -> None:
    session, _ = after(replace(OFFER, availability=((0, 1),)), *OPEN_HERE)
    with pytest.raises(LocalProtocolError, match="cannot be asked for now"):
        session.step(ASK, 0.0)

    more = session.step(Have(((1, 3),)), 0.0)
    assert more.effects == (NoteAvailable(frozenset({1, 2})),)

    assert said(session.step(ASK, 0.0)) == [REQUEST]
    assert verdict(session.step(Have(((1, 2),)), 0.0)).reason is Reason.PROTOCOL_VIOLATION


@pytest.mark.parametrize("ranges", [((1, 1),), ((2, 1),), ((0, 1), (1, 2)), ((2, 4),), ((-1, 1),)])
def test_ranges_have_one_form(ranges: Ranges) -> None:
    offered = after(replace(OFFER, availability=ranges))[1]
    said_later = after(replace(OFFER, availability=()), Have(ranges))[1]

    detail = "the availability is no ascending list of ranges of segments"
    assert (verdict(offered).reason, verdict(offered).detail) == (
        Reason.PROTOCOL_VIOLATION,
        detail,
    )
    assert verdict(said_later).reason is Reason.PROTOCOL_VIOLATION


def test_a_client_that_asks_for_nothing_more_gives_its_place_back() -> None:
    _, step = after(*PART, DeadlinePassed())

    assert verdict(step).reason is Reason.IDLE


def test_a_transfer_that_was_not_asked_for_is_a_violation() -> None:
    _, step = after(OFFER, Begin())

    assert verdict(step).reason is Reason.PROTOCOL_VIOLATION
    assert not verdict(step).weights_dirty


def test_a_client_counts_no_bytes_before_the_offer() -> None:
    assert (client().nbytes, after(OFFER)[0].nbytes) == (0, 0)


@pytest.mark.parametrize(
    "ends", [(RECEIVED, Complete(NBYTES)), (Complete(NBYTES), RECEIVED)], ids=["first", "last"]
)
def test_a_client_is_done_when_all_is_sent_and_all_has_arrived(ends: tuple[Event, Event]) -> None:
    session, step = after(OFFER, *OPEN_HERE, ASK, Begin(), ends[0])
    assert (session.state, step.effects) == (State.TRANSFER, ())

    step = session.step(ends[1], 0.0)
    assert (session.state, step.effects) == (State.TRANSFER, (ChooseSegments((), 2, THERE),))

    assert session.step(Finish(), 0.0).effects == (Send(VERIFIED), DONE)
    assert Verified(3, NBYTES, ROOT) == VERIFIED


def test_a_connection_lost_after_the_last_byte_left_does_not_matter() -> None:
    session, step = after(
        *(OFFER, *OPEN_HERE, ASK, Begin(), Complete(NBYTES)), ConnectionLost("reset")
    )
    assert (session.state, step.effects) == (State.TRANSFER, ())

    session.step(RECEIVED, 0.0)
    assert session.step(Finish(), 0.0).after is State.DONE


def test_a_connection_lost_before_that_ends_it_with_dirty_weights() -> None:
    _, step = after(OFFER, *OPEN_HERE, ASK, Begin(), RECEIVED, ConnectionLost("reset"))

    lost = Verdict(State.FALLBACK, Reason.CONNECTION_LOST, "reset", weights_dirty=True)
    assert step.effects == (AbortTransfer(), Settle(lost))


def test_a_server_that_counts_other_bytes_disagrees() -> None:
    _, step = after(OFFER, *OPEN_HERE, ASK, Begin(), Complete(NBYTES - 1))

    assert verdict(step).reason is Reason.DISAGREEMENT
    assert str(NBYTES - 1) in verdict(step).detail


def test_saying_complete_twice_is_a_violation() -> None:
    _, step = after(OFFER, *OPEN_HERE, ASK, Begin(), Complete(NBYTES), Complete(NBYTES))

    assert verdict(step).reason is Reason.PROTOCOL_VIOLATION


@pytest.mark.parametrize("begun", [(), (*OPEN_HERE, ASK, Begin())])
def test_a_failed_transport_says_why_and_whether_bytes_came(begun: tuple[Event, ...]) -> None:
    _, step = after(OFFER, *begun, TransferFailed(Reason.DIGEST_MISMATCH, "segment 1"))

    failed = Verdict(
        *(State.FALLBACK, Reason.DIGEST_MISMATCH, "segment 1"), weights_dirty=bool(begun)
    )
    told = Send(Reject("digest_mismatch", "segment 1"))
    assert step.effects == (told, AbortTransfer(), Settle(failed))
