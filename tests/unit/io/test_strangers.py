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
    Proof,
    Purpose,
    Reject,
    Request,
    Verified,
)
from netloader.wire.frames import Decoder
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import IDENTITY, Peer, asking, hello, module_of, random, serving, zoo

pytestmark = pytest.mark.usefixtures("driver")
Lines = list[dict[str, Any]]


PRECIOUS = ("precious", "float32", "tiny", "0123abcd", "raw", "tcp", "gloo", "blake3", "manifest")
"""Words of the identity, the tensors, the facts and the abilities of the server below."""


def precious() -> nn.Module:
    return module_of(precious_weight=random(1000), precious_bias=random(10))


STRANGERS: dict[str, tuple[Message | Lane, ...]] = {
    "an honest hello": (hello(),),
    "another model": (hello(identity={"model": "other"}),),
    "no common transport": (hello("pigeon"),),
    "a question": (replace(hello(), purpose=Purpose.DESCRIBE),),
    "a wrong proof": (hello(), Proof("0" * 64)),
    "a wrong proof of another model": (hello(identity={}), Proof("0" * 64)),
    "a proof before a hello": (Proof("0" * 64),),
    "a request": (hello(), Request((0,))),
    "two hellos": (hello(), hello()),
    "a success": (hello(), Verified(1, 1, "0" * 64)),
    "a lane in the middle": (hello(), Lane("0" * 32, 0)),
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
        if len(STRANGERS[words]) == 1 and isinstance(STRANGERS[words][0], Hello):
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
    def heard(model: nn.Module, identity: dict[str, str], greeting: Hello) -> Challenge:
        token = Secret("a token of sixteen characters")
        with (
            serving(model, identity, token=token) as server,
            Peer.call(server.endpoint) as peer,
        ):
            peer.say(greeting)
            answer = peer.hear()
            assert isinstance(answer, Challenge)
            assert proves(answer, token, greeting, answer.nonce)
            return replace(answer, nonce="", mac="")

    ours, other = hello(), hello("pigeon", {"model": "other"})
    answers = [heard(precious(), IDENTITY, g) for g in (ours, other)]
    assert answers == [heard(zoo(1), {"model": "other"}, g) for g in (ours, other)]
    assert len(set(answers)) == 1
