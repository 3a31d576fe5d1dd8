"""The client: what it says, whom it believes, when it is done."""

import copy
from dataclasses import replace

import pytest

from netloader.errors import LocalProtocolError
from netloader.fsm.client import TABLE
from netloader.fsm.client_session import ClientSession
from netloader.fsm.effects import (
    AbortTransfer,
    ChooseSegments,
    NoteAvailable,
    OpenTransport,
    Send,
    Settle,
    StartTransfer,
    Verdict,
)
from netloader.fsm.events import (
    Ask,
    Connected,
    ConnectFailed,
    ConnectionLost,
    DeadlinePassed,
    Event,
    Finish,
    TransferFailed,
    Transferred,
)
from netloader.fsm.identity import Difference, Identity
from netloader.fsm.manifest import Manifest, root_digest
from netloader.fsm.messages import (
    Begin,
    Candidate,
    Challenge,
    Complete,
    Have,
    Hello,
    Offer,
    Proof,
    Purpose,
    Reject,
    Request,
    Verified,
)
from netloader.fsm.ranges import Ranges
from netloader.fsm.reasons import Reason
from netloader.fsm.session import FRAME_AFTER_TRUST, FRAME_BEFORE_TRUST, Step
from netloader.fsm.states import State
from netloader.fsm.terms import FetchSpec
from tests.support.histories import lived
from tests.support.world import (
    ASK,
    BRIEF,
    CHALLENGE,
    CLIENT_NONCE,
    CURIOUS,
    CURIOUS_CHALLENGE,
    DEADLINES,
    DESCRIPTION,
    DIGESTS,
    FINISHED,
    IDENTITY,
    MANIFEST,
    NBYTES,
    OFFER,
    OPEN_HERE,
    PROOF,
    PROVEN_DESCRIPTION,
    PROVEN_OFFER,
    RECEIVED,
    REQUEST,
    RESUMING,
    ROOT,
    SECURED,
    VERIFIED,
    WISH,
    client,
    said,
)

PART = (
    *(OFFER, *OPEN_HERE, Ask((0,)), Begin()),
    *(Transferred(65_536), Complete(65_536)),
)
"""One segment was asked for and has come."""
THERE = frozenset({0, 1, 2})
LOST = Verdict(State.FALLBACK, Reason.CONNECTION_LOST, "reset", weights_dirty=True)
DONE = Settle(Verdict(State.DONE, Reason.VERIFIED, weights_dirty=True))


def after(*events: Event, spec: FetchSpec = WISH) -> tuple[ClientSession, Step]:
    """A connected client after these events, and its last step."""
    session = client(spec)
    step = session.step(Connected(), 0.0)
    for event in events:
        step = session.step(event, 0.0)
    return session, step


def verdict(step: Step) -> Verdict:
    settled = step.effects[-1]
    assert isinstance(settled, Settle)
    return settled.verdict


# -- connecting ----------------------------------------------------------------------------------


def test_a_client_introduces_itself_as_soon_as_it_is_connected() -> None:
    session, step = after()

    assert session.state is State.HANDSHAKE
    hello = Hello(
        versions=(2,),
        purpose=Purpose.WEIGHTS,
        identity=IDENTITY,
        layouts=("raw",),
        transports=("hccl", "tcp"),
        digest_algorithms=("blake3", "sha256"),
        nonce=CLIENT_NONCE,
        manifest_digest=MANIFEST.digest,
    )
    assert step.effects == (Send(hello),)


@pytest.mark.parametrize(
    ("event", "detail"),
    [(ConnectFailed("refused"), "refused"), (DeadlinePassed(), "no answer to connect")],
)
def test_no_message_is_sent_to_an_unreachable_source(event: Event, detail: str) -> None:
    step = client().step(event, 5.0)

    assert step.effects == (Settle(Verdict(State.FALLBACK, Reason.UNREACHABLE, detail)),)


def test_a_client_waits_as_long_as_each_phase_may_take() -> None:
    timeouts = [lived("client listens").next_timeout(), lived("client greeted").next_timeout()]
    timeouts += [lived("client asked").next_timeout(), lived("client receives").next_timeout()]

    transfer = DEADLINES.transfer_s(NBYTES)
    assert timeouts == [DEADLINES.connect_s, DEADLINES.handshake_s, DEADLINES.validate_s, transfer]


# -- the shared token ----------------------------------------------------------------------------


def test_a_client_proves_itself_to_a_server_that_has_proven_itself() -> None:
    session, step = after(CHALLENGE, spec=SECURED)

    assert session.state is State.HANDSHAKE
    assert step.effects == (Send(PROOF),)
    assert session.step(PROVEN_OFFER, 0.0).after is State.VALIDATE


@pytest.mark.parametrize(
    "offer",
    [
        OFFER,
        replace(PROVEN_OFFER, mac="\ud800"),
        replace(PROVEN_OFFER, segment_digests=DIGESTS[::-1]),
    ],
    ids=["without a proof", "with any text", "changed"],
)
def test_an_offer_that_the_server_did_not_make_is_refused(offer: Offer) -> None:
    _, step = after(CHALLENGE, offer, spec=SECURED)

    assert verdict(step).reason is Reason.AUTH_FAILED
    assert verdict(step).detail == (
        "the offer was changed on its way, or the server has another token"
    )
    assert not verdict(step).weights_dirty


def test_a_client_without_a_token_ignores_a_proof() -> None:
    assert after(replace(OFFER, mac="whatever it is"))[0].state is State.VALIDATE


def test_a_client_without_a_token_says_how_to_get_one() -> None:
    _, step = after(CHALLENGE)

    assert verdict(step).reason is Reason.AUTH_REQUIRED
    assert "AUTH_TOKEN_FILE" in verdict(step).detail
    (reject,) = said(step)
    assert isinstance(reject, Reject)
    assert reject.reason == "auth_required"


@pytest.mark.parametrize(
    "event",
    [
        Challenge("5" * 32, "forged"),
        Challenge("6" * 32, CHALLENGE.mac),
        CURIOUS_CHALLENGE,
        PROVEN_OFFER,
    ],
    ids=["forged", "replayed", "of another hello", "no challenge at all"],
)
def test_a_client_does_not_prove_itself_to_a_server_that_cannot(event: Event) -> None:
    session, step = after(event, spec=SECURED)

    assert session.state is State.FALLBACK
    assert verdict(step).reason is Reason.AUTH_FAILED
    assert not any(isinstance(message, Proof) for message in said(step))


def test_a_description_needs_the_servers_proof_as_well() -> None:
    curious = replace(CURIOUS, token=SECURED.token)

    assert verdict(after(PROVEN_DESCRIPTION, spec=curious)[1]).reason is Reason.AUTH_FAILED
    for forged in (DESCRIPTION, replace(PROVEN_DESCRIPTION, facts={"tied": "no"})):
        session, step = after(CURIOUS_CHALLENGE, forged, spec=curious)
        assert verdict(step).reason is Reason.AUTH_FAILED
        assert verdict(step).detail.startswith("the description was changed")
        assert session.description is None
    assert after(CURIOUS_CHALLENGE, PROVEN_DESCRIPTION, spec=curious)[0].state is State.DONE


def test_a_second_challenge_is_a_violation() -> None:
    _, step = after(CHALLENGE, CHALLENGE, spec=SECURED)

    assert verdict(step).reason is Reason.PROTOCOL_VIOLATION


def test_large_frames_are_for_servers_that_are_trusted() -> None:
    assert after(spec=SECURED)[0].frame_limit == FRAME_BEFORE_TRUST
    assert after(CHALLENGE, spec=SECURED)[0].frame_limit == FRAME_AFTER_TRUST
    assert after()[0].frame_limit == FRAME_AFTER_TRUST


# -- a description -------------------------------------------------------------------------------


def test_a_curious_client_is_done_with_the_description() -> None:
    session, step = after(DESCRIPTION, spec=CURIOUS)

    assert session.description == DESCRIPTION
    assert step.effects == (Settle(Verdict(State.DONE, Reason.DESCRIBED)),)


@pytest.mark.parametrize(("spec", "event"), [(CURIOUS, OFFER), (WISH, DESCRIPTION)])
def test_what_was_not_asked_for_is_a_violation(spec: FetchSpec, event: Event) -> None:
    session, step = after(event, spec=spec)

    assert verdict(step).reason is Reason.PROTOCOL_VIOLATION
    assert session.description is None


# -- the offer -----------------------------------------------------------------------------------


def test_a_good_offer_is_taken_up() -> None:
    session, step = after(OFFER)

    assert (session.state, session.name) == (State.VALIDATE, "session-1")
    assert step.effects == (OpenTransport(OFFER, "tcp"),)
    assert client().name == ""


def test_another_identity_is_refused_with_every_differing_field() -> None:
    other = Identity({"model": "mamba", "tp_size": "2"}, IDENTITY.soft)

    _, step = after(replace(OFFER, identity=other))

    assert verdict(step).reason is Reason.IDENTITY_MISMATCH
    assert verdict(step).detail == "differing: model, tp_size"
    seen = [(d.field, d.mine, d.theirs) for d in verdict(step).differences]
    assert seen == [("model", "llama", "mamba"), ("tp_size", "1", "2")]
    (reject,) = said(step)
    assert isinstance(reject, Reject)
    assert [(d.mine, d.theirs) for d in reject.differences] == [("mamba", "llama"), ("2", "1")]


def test_another_manifest_is_refused_with_the_first_difference() -> None:
    tensors = (replace(MANIFEST.tensors[0], dtype="float16"), *MANIFEST.tensors[1:])

    _, step = after(replace(OFFER, manifest=Manifest(tensors)))

    difference = Difference(
        "embed dtype", "bfloat16", "float16", "cast the model of one side, with model.to(dtype)"
    )
    assert verdict(step).reason is Reason.MANIFEST_MISMATCH
    assert verdict(step).differences == (difference,)
    assert "embed dtype: mine is 'bfloat16', theirs is 'float16'" in verdict(step).detail


@pytest.mark.parametrize(
    ("offer", "detail"),
    [
        (replace(OFFER, layout="processed"), "the server chose a layout that was not asked for"),
        (
            replace(OFFER, candidates=(Candidate("gloo"),)),
            "the server chose a transport that was not asked for",
        ),
        (
            replace(OFFER, digest_algorithm="md5"),
            "the server chose a digest algorithm that was not asked for",
        ),
        (replace(OFFER, segment_bytes=1), "segments below 65536 bytes"),
        (replace(OFFER, segment_bytes=0), "segments below 65536 bytes"),
        (replace(OFFER, segment_bytes=-(2**70)), "segments below 65536 bytes"),
        (replace(OFFER, segment_digests=DIGESTS[:2]), "2 segment digests for 3 segments"),
        (replace(OFFER, segment_digests=()), "0 segment digests for 3 segments"),
        (replace(OFFER, segment_bytes=2**70), "3 segment digests for 1 segments"),
        (replace(OFFER, root="another"), "the root is not that of the segment digests"),
    ],
)
def test_an_offer_that_cannot_be_right_is_refused(offer: Offer, detail: str) -> None:
    _, step = after(offer)

    assert (verdict(step).reason, verdict(step).detail) == (Reason.PROTOCOL_VIOLATION, detail)


def test_a_manifest_that_is_left_out_is_the_clients_own() -> None:
    session, step = after(BRIEF)

    assert step.effects == (OpenTransport(OFFER, "tcp"),)
    assert session.offer == OFFER
    assert client(CURIOUS).hello.manifest_digest == ""


# -- asking and receiving ------------------------------------------------------------------------


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


@pytest.mark.parametrize("word", [Begin(), Begin(3), Complete(NBYTES), Complete(65_536, 2)])
def test_an_answer_to_another_request_is_a_violation(word: Event) -> None:
    _, step = after(*PART, Ask((1, 2)), word)

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


# -- a session that somebody tampered with -------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "event"),
    [(State.VALIDATE, ASK), (State.TRANSFER, RECEIVED)],
)
def test_a_state_that_was_set_by_hand_raises_and_sends_nothing(source: State, event: Event) -> None:
    session = client()
    session.state = source
    session.completed = True

    with pytest.raises(AssertionError):
        session.step(event, 0.0)

    assert (session.state, session.verdict) == (source, None)
    session.completed = False
    assert copy.copy(session).step(TransferFailed(Reason.STOPPED, "x"), 0.0).after is State.FALLBACK


@pytest.mark.parametrize(("action", "event"), [("prove", CHALLENGE), ("start", Begin())])
def test_an_action_whose_guard_was_taken_away_does_not_go_on(action: str, event: Event) -> None:
    unguarded = next(r for r in TABLE if r.action == action)

    with pytest.raises(AssertionError, match="guarded by"):
        list(unguarded.do(client(), event))
