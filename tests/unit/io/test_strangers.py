"""With a token set, a stranger learns nothing of the model and starts nothing."""

import socket
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from netloader.config import Secret
from netloader.fsm.auth import proves
from netloader.fsm.messages import (
    Challenge,
    Hello,
    Lane,
    Message,
    Purpose,
    Reject,
    Request,
    Start,
    Verified,
)
from netloader.wire.frames import Decoder
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import (
    IDENTITY,
    Peer,
    asking,
    hello,
    module_of,
    pretending,
    random,
    serving,
    zoo,
)

pytestmark = pytest.mark.usefixtures("driver")
Lines = list[dict[str, Any]]


START = Start((2,), "0" * 32)
PRECIOUS = ("precious", "float32", "tiny", "0123abcd", "raw", "tcp", "gloo", "blake3", "manifest")
"""Words of the identity, the tensors, the facts and the abilities of the server below."""


def precious() -> nn.Module:
    return module_of(precious_weight=random(1000), precious_bias=random(10))


STRANGERS: dict[str, tuple[Message | Lane, ...]] = {
    "an honest hello": (hello(),),
    "another model": (hello(identity={"model": "other"}),),
    "no common transport": (hello("pigeon"),),
    "a question": (replace(hello(), purpose=Purpose.DESCRIBE),),
    "a start": (START,),
    "a wrong proof": (START, replace(hello(), mac="0" * 64)),
    "a wrong proof of another model": (START, replace(hello(identity={}), mac="0" * 64)),
    "a proof before a start": (replace(hello(), mac="0" * 64),),
    "a request": (START, Request((0,))),
    "two starts": (START, START),
    "two hellos": (hello(), hello()),
    "a success": (START, Verified(1, 1, "0" * 64)),
    "a lane in the middle": (START, Lane("0" * 32, 0)),
    "a lane of nobody": (Lane("0" * 32, 0),),
}


@pytest.mark.parametrize("words", STRANGERS)
def test_a_stranger_learns_nothing_of_the_model_and_starts_nothing(
    words: str, captured: Lines
) -> None:
    token = Secret("a token of sixteen characters")
    facts = {"precious": "0123abcd"}
    with (
        serving(precious(), token=token, facts=facts, max_clients=1) as server,
        Peer.call(server.endpoint) as peer,
    ):
        peer.say(*STRANGERS[words])
        if len(STRANGERS[words]) == 1 and isinstance(STRANGERS[words][0], Hello | Start):
            peer.sock.shutdown(socket.SHUT_WR)
        heard = b""
        while data := peer.sock.recv(1 << 16):
            heard += data
        target = precious()
        asked = asking(token=token)
        assert fill(target, [server.endpoint], IDENTITY, asked).ok  # the only place is free

    assert not [word for word in PRECIOUS if word.encode() in heard.lower()], heard
    said = Decoder(1 << 16).feed(heard)
    assert all(isinstance(item, Challenge | Reject) for item in said)
    sessions = {line.get("netloader.session.id") or "?" for line in captured}
    assert not [name for name in sessions if name.encode() in heard]
    started = [line for line in captured if line["event"] == "netloader.transfer.started"]
    assert len(started) == 2  # both sides of the honest client, and nobody else


def test_what_a_stranger_hears_does_not_depend_on_the_model() -> None:
    token = Secret("a token of sixteen characters")

    def heard(model: nn.Module, identity: dict[str, str], *words: Message) -> list[object]:
        with (
            serving(model, identity, token=token) as server,
            Peer.call(server.endpoint) as peer,
        ):
            peer.say(*words)
            peer.sock.shutdown(socket.SHUT_WR)
            answers = list(iter(peer.hear, None))
            first = answers[0]
            if isinstance(first, Challenge):
                assert proves(first, token, START, first.nonce)
                answers[0] = replace(first, nonce="", mac="")
            return answers

    other = hello("pigeon", {"model": "other"})
    for words in ((START,), (hello(),), (other,), (START, replace(other, mac="0" * 64))):
        ours = heard(precious(), IDENTITY, *words)
        assert ours == heard(zoo(1), {"model": "other"}, *words)
    assert heard(zoo(1), IDENTITY, hello()) == heard(zoo(1), IDENTITY, other)


def test_a_server_without_the_token_does_not_hear_what_a_client_wants() -> None:
    said: list[bytes] = []

    def curious(peer: Peer) -> None:
        """Ask for everything, as a server that wants to know who calls would."""
        said.append(peer.sock.recv(1 << 16))
        peer.say(Challenge("0" * 32, "0" * 64))
        while data := peer.sock.recv(1 << 16):
            said.append(data)

    identity = {"model": "precious", "checkpoint": "0123abcd"}
    asked = asking(token=Secret("a token of sixteen characters"))
    with pretending(curious) as endpoint:
        outcome = fill(precious(), [endpoint], identity, asked)

    assert [a.reason.value for a in outcome.attempts] == ["auth_failed"]
    heard = b"".join(said)
    assert b"start" in heard
    assert not [word for word in PRECIOUS if word.encode() in heard.lower()], heard
