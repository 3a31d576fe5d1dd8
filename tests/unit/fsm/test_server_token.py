"""The server with a shared token: who proves nothing learns nothing."""

from dataclasses import replace

import pytest

from netloader.config import Secret
from netloader.fsm import auth
from netloader.fsm.effects import PrepareOffer, Send
from netloader.fsm.messages import Challenge, Hello, Proof
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from tests.support.messages import (
    CHALLENGE,
    CURIOUS,
    CURIOUS_PROOF,
    GUARDED,
    OFFER_READY,
    OFFERING,
    PROOF,
    PROVEN_DESCRIPTION,
    PROVEN_OFFER,
    SECURED,
    SERVER_NONCE,
    TOKEN,
    hello,
    proven,
    said,
)
from tests.unit.fsm.test_server import OTHER, UNABLE, after, verdict

HEARD = (hello(SECURED), SERVER_NONCE)


def test_a_server_with_a_token_proves_itself_and_asks_for_proof() -> None:
    session, step = after(hello(SECURED), entry=GUARDED)

    assert (session.state, step.effects) == (State.HANDSHAKE, (Send(CHALLENGE),))
    assert session.step(PROOF, 0.0).effects == (PrepareOffer(("tcp",), "sha256", 0),)
    assert session.step(OFFER_READY, 0.0).effects == (Send(replace(PROVEN_OFFER, manifest=None)),)


@pytest.mark.parametrize(
    "mac",
    ["", "forged", "\ud800", CHALLENGE.mac, CURIOUS_PROOF.mac],
    ids=["none", "forged", "half a character", "mirrored", "of another hello"],
)
def test_a_wrong_proof_is_refused(mac: str) -> None:
    _, step = after(hello(SECURED), Proof(mac), entry=GUARDED)

    assert verdict(step).reason is Reason.AUTH_FAILED


def test_a_server_with_two_tokens_takes_a_client_with_either() -> None:
    old = Secret("the token before this one")
    entry = replace(OFFERING, tokens=(old, TOKEN))
    session, step = after(hello(SECURED), entry=entry)

    [asked] = [e.message for e in step.effects if isinstance(e, Send)]
    assert asked == Challenge(
        SERVER_NONCE, auth.proven(CHALLENGE, old, *HEARD).mac, (CHALLENGE.mac,)
    )
    assert session.step(PROOF, 0.0).effects == (PrepareOffer(("tcp",), "sha256", 0),)
    assert session.step(OFFER_READY, 0.0).effects == (Send(replace(PROVEN_OFFER, manifest=None)),)

    first, _ = after(hello(SECURED), auth.proven(Proof(), old, *HEARD), entry=entry)
    assert (first.state, first.token) == (State.VALIDATE, old)


def test_a_token_that_was_taken_away_is_refused_as_any_other() -> None:
    old = Secret("the token before this one")
    _, step = after(hello(SECURED), auth.proven(Proof(), old, *HEARD), entry=GUARDED)

    assert verdict(step).reason is Reason.AUTH_FAILED


@pytest.mark.parametrize("words", [OTHER, UNABLE, hello(CURIOUS), hello()])
def test_a_client_without_proof_receives_no_facts(words: Hello) -> None:
    _, step = after(words, entry=GUARDED)

    assert step.effects == (Send(proven(Challenge(SERVER_NONCE), words)),)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (OTHER, Reason.IDENTITY_MISMATCH),
        (UNABLE, Reason.NOTHING_IN_COMMON),
        (hello(CURIOUS), Reason.DESCRIBED),
    ],
)
def test_after_the_proof_a_hello_is_compared_as_without_a_token(
    words: Hello, reason: Reason
) -> None:
    _, step = after(words, proven(Proof(), words), entry=GUARDED)

    assert verdict(step).reason is reason
    if reason is Reason.DESCRIBED:
        assert said(step) == [PROVEN_DESCRIPTION]


def test_an_unsolicited_proof_is_a_violation() -> None:
    for entry in (OFFERING, GUARDED):
        assert verdict(after(PROOF, entry=entry)[1]).reason is Reason.PROTOCOL_VIOLATION


def test_greeting_twice_is_a_violation() -> None:
    _, step = after(hello(SECURED), hello(SECURED), entry=GUARDED)

    assert verdict(step).reason is Reason.PROTOCOL_VIOLATION


def test_a_server_without_a_token_believes_no_proof() -> None:
    session, _ = after()
    session.hello = hello()

    assert verdict(session.step(PROOF, 0.0)).reason is Reason.AUTH_FAILED
