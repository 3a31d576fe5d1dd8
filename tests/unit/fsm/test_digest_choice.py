"""Which digest algorithm a server publishes with and a client accepts, by who may change bytes."""

import pytest

from netloader.config import Secret
from netloader.fsm.digest_choice import Channel, accepted, channel_to, flaw_of, published

TOKEN = Secret("0123456789abcdef")
BOTH = ("blake3", "xxh3_128")
ONE = ("blake3",)


@pytest.mark.parametrize(
    ("token", "hosts", "channel"),
    [
        (None, ("10.0.0.1",), Channel.TRUSTED),
        (TOKEN, ("10.0.0.1",), Channel.EXPOSED),
        (TOKEN, ("127.0.0.1", "10.0.0.1"), Channel.EXPOSED),
        (TOKEN, ("127.0.0.2", "::1", "localhost"), Channel.TRUSTED),
        (TOKEN, ("localhost.example.org",), Channel.EXPOSED),
        (TOKEN, ("",), Channel.EXPOSED),
    ],
)
def test_a_network_with_a_token_is_exposed(
    token: Secret | None, hosts: tuple[str, ...], channel: Channel
) -> None:
    assert channel_to(token, hosts) is channel


@pytest.mark.parametrize(
    ("choice", "able", "channel", "offers", "asks"),
    [
        ("auto", BOTH, Channel.TRUSTED, ("xxh3_128", "blake3"), ("xxh3_128", "blake3")),
        ("auto", BOTH, Channel.EXPOSED, ("blake3", "xxh3_128"), ("blake3",)),
        ("auto", ONE, Channel.TRUSTED, ("blake3",), ("blake3",)),
        ("auto", ONE, Channel.EXPOSED, ("blake3",), ("blake3",)),
        ("blake3", BOTH, Channel.TRUSTED, ("blake3",), ("blake3",)),
        ("xxh3_128", BOTH, Channel.EXPOSED, ("xxh3_128",), ("xxh3_128",)),
    ],
)
def test_what_is_offered_and_asked_for(
    choice: str,
    able: tuple[str, ...],
    channel: Channel,
    offers: tuple[str, ...],
    asks: tuple[str, ...],
) -> None:
    assert published(choice, able, channel) == offers
    assert accepted(choice, able, channel) == asks


def test_what_segments_are_verified_with_already_comes_first_but_never_against_the_rule() -> None:
    assert accepted("auto", BOTH, Channel.TRUSTED, "blake3") == ("blake3", "xxh3_128")
    assert accepted("auto", BOTH, Channel.EXPOSED, "xxh3_128") == ("blake3",)


@pytest.mark.parametrize(
    ("choice", "able", "says"),
    [
        ("auto", ONE, ""),
        ("xxh3_128", BOTH, ""),
        ("xxh3_128", ONE, "install vllm-netloader[fast]"),
        ("md5", BOTH, "give one of auto, blake3, xxh3_128"),
    ],
)
def test_a_choice_that_cannot_be_used_is_refused_with_a_remedy(
    choice: str, able: tuple[str, ...], says: str
) -> None:
    flaw = flaw_of(choice, able)

    assert flaw.startswith(says)
    assert bool(flaw) == bool(says)
