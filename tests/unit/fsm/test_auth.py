"""Proof of a token: only for this side, this conversation and this token."""

import pytest

from netloader.config import Secret
from netloader.fsm.auth import proof, proves

TOKEN = Secret("correct horse battery staple")
KNOWN = "4f3e2094775daa1f0527d61158b245909f69af903027560eaac9e51fd88ce030"


def test_the_proof_is_hmac_sha256_as_documented() -> None:
    """Made with: printf %s 'netloader|client|aa|bb' | openssl dgst -sha256 -hmac "$TOKEN"."""
    assert proof(TOKEN, "client", "aa", "bb") == KNOWN


def test_a_right_proof_convinces() -> None:
    assert proves(proof(TOKEN, "server", "aa", "bb"), TOKEN, "server", "aa", "bb")


@pytest.mark.parametrize(
    ("token", "side", "client_nonce", "server_nonce"),
    [
        (Secret("another token"), "server", "aa", "bb"),
        (TOKEN, "client", "aa", "bb"),
        (TOKEN, "server", "a0", "bb"),
        (TOKEN, "server", "aa", "b0"),
        (TOKEN, "server", "bb", "aa"),
    ],
    ids=["other token", "mirrored", "other client nonce", "replayed", "swapped nonces"],
)
def test_a_proof_of_anything_else_does_not_convince(
    token: Secret, side: str, client_nonce: str, server_nonce: str
) -> None:
    mac = proof(token, side, client_nonce, server_nonce)

    assert not proves(mac, TOKEN, "server", "aa", "bb")


@pytest.mark.parametrize("forge", ["", "x", "é" * 64, "\x00", "0" * 64, "0" * 100_000])
def test_any_text_of_a_peer_is_just_a_wrong_proof(forge: str) -> None:
    assert not proves(forge, TOKEN, "server", "aa", "bb")
    assert not proves(proof(TOKEN, "server", "aa", "bb")[:-1], TOKEN, "server", "aa", "bb")


def test_tokens_and_nonces_may_hold_any_text() -> None:
    token = Secret("пароль 🔑")

    assert proves(proof(token, "client", "é", "|"), token, "client", "é", "|")
