"""The client: what it says, whom it believes, which offer it takes up."""

import copy
from dataclasses import replace

import pytest

from netloader.fsm import auth
from netloader.fsm.client import TABLE
from netloader.fsm.client_session import ClientSession
from netloader.fsm.effects import OpenTransport, Send, Settle, Verdict
from netloader.fsm.events import Connected, ConnectFailed, DeadlinePassed, Event, TransferFailed
from netloader.fsm.identity import Difference, Identity
from netloader.fsm.manifest import Manifest
from netloader.fsm.messages import Begin, Candidate, Challenge, Hello, Offer, Purpose, Reject, Start
from netloader.fsm.reasons import Reason
from netloader.fsm.session import FRAME_AFTER_TRUST, FRAME_BEFORE_TRUST, Step
from netloader.fsm.states import State
from netloader.fsm.terms import FetchSpec
from tests.support.histories import lived
from tests.support.messages import (
    ASK,
    BRIEF,
    CHALLENGE,
    CLIENT_NONCE,
    CURIOUS,
    DEADLINES,
    DESCRIPTION,
    DIGESTS,
    IDENTITY,
    MANIFEST,
    NBYTES,
    OFFER,
    PROOF,
    PROVEN_DESCRIPTION,
    PROVEN_OFFER,
    RECEIVED,
    SECURED,
    START,
    TOKEN,
    WISH,
    client,
    said,
)


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


def test_a_client_with_a_token_says_nothing_of_itself_before_the_servers_proof() -> None:
    _, step = after(spec=SECURED)

    assert step.effects == (Send(Start((2,), CLIENT_NONCE)),)


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


def test_a_challenge_that_was_not_asked_for_is_a_violation() -> None:
    _, step = after(CHALLENGE)

    assert verdict(step).reason is Reason.PROTOCOL_VIOLATION


@pytest.mark.parametrize(
    "event",
    [
        Challenge("5" * 32, "forged"),
        Challenge("6" * 32, CHALLENGE.mac),
        auth.challenge((TOKEN,), replace(START, nonce="d" * 32), "5" * 32),
        PROVEN_OFFER,
    ],
    ids=["forged", "replayed", "of another start", "no challenge at all"],
)
def test_a_client_does_not_prove_itself_to_a_server_that_cannot(event: Event) -> None:
    session, step = after(event, spec=SECURED)

    assert session.state is State.FALLBACK
    assert verdict(step).reason is Reason.AUTH_FAILED
    assert not any(isinstance(message, Hello) for message in said(step))


def test_a_description_needs_the_servers_proof_as_well() -> None:
    curious = replace(CURIOUS, token=SECURED.token)

    assert verdict(after(PROVEN_DESCRIPTION, spec=curious)[1]).reason is Reason.AUTH_FAILED
    for forged in (DESCRIPTION, replace(PROVEN_DESCRIPTION, facts={"tied": "no"})):
        session, step = after(CHALLENGE, forged, spec=curious)
        assert verdict(step).reason is Reason.AUTH_FAILED
        assert verdict(step).detail.startswith("the description was changed")
        assert session.description is None
    assert after(CHALLENGE, PROVEN_DESCRIPTION, spec=curious)[0].state is State.DONE


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
    tensors = (MANIFEST.tensors[0]._replace(dtype="float16"), *MANIFEST.tensors[1:])

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


@pytest.mark.parametrize(("action", "event"), [("start", Begin())])
def test_an_action_whose_guard_was_taken_away_does_not_go_on(action: str, event: Event) -> None:
    unguarded = next(r for r in TABLE if r.action == action)

    with pytest.raises(AssertionError, match="guarded by"):
        list(unguarded.do(client(), event))
