"""The server with a shared token: who proves nothing learns nothing."""

from dataclasses import replace

import pytest

from netloader.config import Secret
from netloader.fsm import auth
from netloader.fsm.effects import PrepareOffer, Send
from netloader.fsm.messages import Challenge, Hello, Reject
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
    SERVER_NONCE,
    START,
    TOKEN,
    hello,
    said,
)
from tests.unit.fsm.test_server import OTHER, UNABLE, after, verdict

OLD = Secret("the token before this one")
PLAIN = hello()
"""What the client of PROOF says of itself, without its proof."""


def test_a_server_with_a_token_proves_itself_and_asks_for_proof() -> None:
    session, step = after(START, entry=GUARDED)

    assert (session.state, step.effects) == (State.HANDSHAKE, (Send(CHALLENGE),))
    assert session.step(PROOF, 0.0).effects == (PrepareOffer(("tcp",), "sha256", 0),)
    assert session.step(OFFER_READY, 0.0).effects == (Send(replace(PROVEN_OFFER, manifest=None)),)


@pytest.mark.parametrize(
    "mac",
    ["", "forged", "\ud800", CHALLENGE.mac, CURIOUS_PROOF.mac],
    ids=["none", "forged", "half a character", "mirrored", "of another hello"],
)
def test_a_wrong_proof_is_refused(mac: str) -> None:
    _, step = after(START, replace(PROOF, mac=mac), entry=GUARDED)

    assert verdict(step).reason is Reason.AUTH_FAILED


def test_a_hello_that_was_changed_is_refused() -> None:
    _, step = after(START, replace(PROOF, serves_at="10.0.0.66:1"), entry=GUARDED)

    assert verdict(step).reason is Reason.AUTH_FAILED


def test_a_server_with_two_tokens_takes_a_client_with_either() -> None:
    entry = replace(OFFERING, tokens=(OLD, TOKEN))
    session, step = after(START, entry=entry)

    [asked] = [e.message for e in step.effects if isinstance(e, Send)]
    first_mac = auth.proven(Challenge(SERVER_NONCE), OLD, START, SERVER_NONCE).mac
    assert asked == Challenge(SERVER_NONCE, first_mac, (CHALLENGE.mac,))
    assert session.step(PROOF, 0.0).effects == (PrepareOffer(("tcp",), "sha256", 0),)
    assert session.step(OFFER_READY, 0.0).effects == (Send(replace(PROVEN_OFFER, manifest=None)),)

    first, _ = after(START, auth.proven(PLAIN, OLD, START, SERVER_NONCE), entry=entry)
    assert (first.state, first.token) == (State.VALIDATE, OLD)


def test_a_token_that_was_taken_away_is_refused_as_any_other() -> None:
    _, step = after(START, auth.proven(PLAIN, OLD, START, SERVER_NONCE), entry=GUARDED)

    assert verdict(step).reason is Reason.AUTH_FAILED


@pytest.mark.parametrize("words", [OTHER, UNABLE, hello(CURIOUS), hello(), PROOF])
def test_a_client_that_has_not_asked_for_proof_receives_no_facts(words: Hello) -> None:
    _, step = after(words, entry=GUARDED)

    assert verdict(step).reason is Reason.AUTH_REQUIRED
    (told,) = said(step)
    assert told == Reject("auth_required", "the server asks for a token; set AUTH_TOKEN_FILE")


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
    proven = auth.proven(words, TOKEN, START, SERVER_NONCE)
    _, step = after(START, proven, entry=GUARDED)

    assert verdict(step).reason is reason
    if reason is Reason.DESCRIBED:
        assert said(step) == [PROVEN_DESCRIPTION]


def test_starting_twice_is_a_violation() -> None:
    _, step = after(START, START, entry=GUARDED)

    assert verdict(step).reason is Reason.PROTOCOL_VIOLATION


def test_a_client_of_another_version_is_told_so_whatever_it_says_first() -> None:
    for words in (replace(START, versions=(7, 9)), replace(PROOF, versions=(7, 9))):
        assert verdict(after(words, entry=GUARDED)[1]).reason is Reason.UNSUPPORTED_VERSION


def test_a_server_without_a_token_says_that_it_cannot_prove_one() -> None:
    _, step = after(START)

    assert verdict(step).reason is Reason.AUTH_FAILED
    assert "the server has none" in verdict(step).detail


def test_a_proof_that_was_not_asked_for_is_ignored_where_there_is_no_token() -> None:
    assert after(PROOF)[0].state is State.VALIDATE
