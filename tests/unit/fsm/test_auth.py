"""Proof of a token: only of this message, of this side, in this conversation, under this token."""

import hashlib
import hmac
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from time import perf_counter
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloader.config import Secret
from netloader.fsm.auth import (
    PROOFS,
    Opening,
    Proven,
    authenticated,
    challenge,
    challenges,
    known,
    proven,
    proves,
)
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest, TensorSpec
from netloader.fsm.messages import (
    Answer,
    Candidate,
    Challenge,
    Description,
    Hello,
    Offer,
    Purpose,
    Start,
    Status,
)
from netloader.wire.frames import Decoder, encode
from tests.unit.fsm.test_canonical import any_text, read

TOKEN: Final = Secret("correct horse battery staple")
NONCE: Final = "bb"
IDENTITY: Final = Identity({"model": "m"}, {"checkpoint": "c"})
START: Final = Start((2,), "aa")
PLAIN: Final = Hello(
    versions=(2,),
    purpose=Purpose.WEIGHTS,
    identity=IDENTITY,
    layouts=("raw",),
    transports=("tcp", "gloo"),
    digest_algorithms=("blake3",),
    manifest_digest="dd",
    serves_at="h:1",
)
HELLO: Final = proven(PLAIN, TOKEN, START, NONCE)
SPEC: Final = TensorSpec("w", "float32", (2,), (1,), 8)
OFFER: Final = Offer(
    session="s",
    identity=IDENTITY,
    layout="raw",
    candidates=(Candidate("tcp", {"key": "value"}),),
    digest_algorithm="blake3",
    manifest=Manifest((SPEC,)),
    segment_bytes=65_536,
    segment_digests=("d0", "d1"),
    root="r",
)
MESSAGES: Final[dict[str, Proven]] = {
    "challenge": Challenge(NONCE),
    "hello": PLAIN,
    "offer": OFFER,
    "answer": Answer("tcp", {"key": "value"}),
    "description": Description(IDENTITY, {"tied": "yes"}),
}
OTHERS: Final[Mapping[str, Any]] = {
    "nonce": "cc",
    "mac": "0" * 64,
    "session": "t",
    "versions": (2, 3),
    "purpose": Purpose.DESCRIBE,
    "identity": Identity({"model": "m"}, {"checkpoint": "d"}),
    "layout": "processed",
    "layouts": ("raw", "processed"),
    "candidates": (Candidate("tcp", {"key": "other"}),),
    "transport": "gloo",
    "transports": ("gloo", "tcp"),
    "digest_algorithm": "sha256",
    "digest_algorithms": ("sha256",),
    "segment_digests": ("d1", "d0"),
    "root": "s",
    "manifest": Manifest((SPEC._replace(name="v"),)),
    "segment_bytes": 131_072,
    "rendezvous": {"key": "other"},
    "facts": {"tied": "no"},
    "availability": ((0, 1),),
    "manifest_digest": "d" * 64,
    "serves_at": "h:2",
    "status": Status("offered", ("",), 4, 0, 2, 0, 0, 65_536, 1, 1, (), ("tcp",), "blake3", "r"),
    "other_sources": ("h:3",),
}
"""Another value for each field of a message or of the hello."""


def opening(message: Proven) -> Opening:
    """What a client has said before this message."""
    return START if isinstance(message, Challenge | Hello) else HELLO


def said(name: str) -> Proven:
    message = MESSAGES[name]
    return proven(message, TOKEN, opening(message), NONCE)


# -- the bytes, for whoever writes another implementation -----------------------------------------

HELLO_BYTES: Final = (
    b"l9:netloaderi2e6:client5:hello"
    b"d5:nonce2:aa8:versionsli2eee2:bb"
    b"d17:digest_algorithmsl6:blake3e8:identityd4:hardd5:model1:me4:softd10:checkpoint1:cee"
    b"7:layoutsl3:rawe15:manifest_digest2:dd7:purpose7:weights9:serves_at3:h:110:transportsl3:tcp4:gloo"
    b"e8:versionsli2eeee"
)
KNOWN: Final = "f88a80acb5a0cecf266b05a690709efe620d2e0ebf68dd4b2dcca75aed5934e3"


def test_the_proof_is_hmac_sha256_of_the_documented_bytes() -> None:
    """The same as `openssl dgst -sha256 -hmac "$TOKEN"` of the file with these bytes."""
    assert authenticated(PLAIN, START, NONCE) == HELLO_BYTES
    right = hmac.new(b"correct horse battery staple", HELLO_BYTES, hashlib.sha256).hexdigest()
    assert said("hello").mac == right == KNOWN


def test_an_offer_is_covered_with_the_digest_of_its_manifest() -> None:
    written = authenticated(OFFER, HELLO, NONCE)

    (*about, hello, nonce, content), end = read(written, 0)
    assert end == len(written)
    assert about == ["netloader", 2, "server", "offer"]
    assert (hello["mac"], nonce) == (HELLO.mac, "bb")
    assert content["manifest"] == Manifest((SPEC,)).digest
    assert content["segment_digests"] == ["d0", "d1"]
    assert "mac" not in content


def test_a_manifest_that_is_left_out_is_that_of_the_hello() -> None:
    hello = replace(HELLO, manifest_digest=Manifest((SPEC,)).digest)
    said_short = proven(replace(OFFER, manifest=None), TOKEN, hello, NONCE)

    assert proves(replace(said_short, manifest=OFFER.manifest), TOKEN, hello, NONCE)
    assert not proves(said_short, TOKEN, HELLO, NONCE), "left out on the way"


# -- what a proof is good for ---------------------------------------------------------------------


@pytest.mark.parametrize("name", MESSAGES)
def test_a_right_proof_convinces_here_and_nowhere_else(name: str) -> None:
    message = said(name)
    first = opening(message)

    assert proves(message, TOKEN, first, NONCE)
    assert not proves(message, Secret("another token"), first, NONCE)
    assert not proves(message, TOKEN, first, "b0")
    elsewhere = proven(PLAIN, TOKEN, replace(START, nonce="a0"), NONCE)
    other = replace(START, nonce="a0") if first is START else elsewhere
    assert not proves(message, TOKEN, other, NONCE)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_of_a_message_is_covered(name: str) -> None:
    message = said(name)
    for field in fields(message):
        if field.name not in PROOFS:
            changed = replace(message, **{field.name: OTHERS[field.name]})
            assert not proves(changed, TOKEN, opening(message), NONCE), field


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_of_what_the_client_said_before_is_covered(name: str) -> None:
    first = opening(MESSAGES[name])
    for field in fields(first):
        changed = replace(first, **{field.name: OTHERS[field.name]})
        assert not proves(said(name), TOKEN, changed, NONCE), field


def test_every_field_of_a_tensor_is_covered() -> None:
    others: dict[str, Any] = {
        "name": "v",
        "dtype": "int32",
        "shape": (1, 2),
        "stride": (2,),
        "format": "nz",
    }
    for field in TensorSpec._fields:
        spec = SPEC._replace(**{field: others.get(field, 7)})
        offer = replace(proven(OFFER, TOKEN, HELLO, NONCE), manifest=Manifest((spec,)))
        assert not proves(offer, TOKEN, HELLO, NONCE), field


def test_the_proof_of_one_message_is_none_of_another() -> None:
    macs = {name: said(name).mac for name in MESSAGES}
    assert len(set(macs.values())) == len(macs)
    for name, message in MESSAGES.items():
        for other, mac in macs.items():
            forged = replace(message, mac=mac)
            assert proves(forged, TOKEN, opening(message), NONCE) == (name == other)


def test_without_a_token_nothing_is_added() -> None:
    for message in MESSAGES.values():
        assert proven(message, None, opening(message), NONCE) is message
        assert message.mac == ""


@pytest.mark.parametrize("name", MESSAGES)
def test_a_proof_survives_the_wire(name: str) -> None:
    first = opening(MESSAGES[name])
    heard = Decoder(1 << 20).feed(encode(first) + encode(said(name)))

    assert isinstance(heard[0], type(first))
    assert isinstance(heard[1], Proven)
    assert proves(heard[1], TOKEN, heard[0], NONCE)


# -- any text of a peer ---------------------------------------------------------------------------


@pytest.mark.parametrize("forge", ["", "x", "é" * 64, "\x00", "0" * 64, "0" * 100_000, "\ud800"])
def test_any_text_of_a_peer_is_just_a_wrong_proof(forge: str) -> None:
    for message in MESSAGES.values():
        assert not proves(replace(message, mac=forge), TOKEN, opening(message), NONCE)
        short = replace(message, mac=message.mac[:-1])
        assert not proves(short, TOKEN, opening(message), NONCE)


texts = st.lists(any_text, max_size=3).map(tuple)
words = st.dictionaries(any_text, any_text, max_size=3)
identities = st.builds(Identity, words, words)
versions = st.lists(st.integers(), max_size=2).map(tuple)
hellos = st.builds(Hello, versions, st.sampled_from(Purpose), identities)
starts = st.builds(Start, versions, any_text)
manifests = st.lists(
    st.builds(TensorSpec, any_text, any_text, st.just(()), st.just(()), st.integers()), max_size=2
).map(lambda specs: Manifest(tuple(specs)))
candidates = st.lists(st.builds(Candidate, any_text, words), max_size=2).map(tuple)
offers = st.builds(
    Offer,
    *(
        any_text,
        identities,
        any_text,
        candidates,
        any_text,
        manifests,
        st.integers(),
        texts,
        any_text,
    ),
)
first_messages = st.one_of(st.builds(Challenge, any_text), hellos)
later_messages = st.one_of(
    offers, st.builds(Description, identities, words), st.builds(Answer, any_text, words)
)
conversations = st.one_of(
    st.tuples(first_messages, starts, any_text), st.tuples(later_messages, hellos, any_text)
)


@given(conversations, conversations)
def test_two_that_differ_are_never_authenticated_by_the_same_bytes(
    one: tuple[Proven, Opening, str], other: tuple[Proven, Opening, str]
) -> None:
    assert (authenticated(*one) == authenticated(*other)) == (one == other)


@given(conversations, st.data())
def test_moving_a_character_to_the_next_field_makes_other_bytes(
    one: tuple[Proven, Opening, str], data: st.DataObject
) -> None:
    message, hello, nonce = one
    if not isinstance(message, Offer):
        return
    candidate = next(iter(message.candidates), Candidate(""))
    both = message.layout + candidate.transport + message.digest_algorithm
    cuts = sorted(data.draw(st.tuples(*[st.integers(0, len(both))] * 2), label="cuts"))
    other = replace(
        message,
        layout=both[: cuts[0]],
        candidates=(replace(candidate, transport=both[cuts[0] : cuts[1]]),),
        digest_algorithm=both[cuts[1] :],
    )
    same = authenticated(other, hello, nonce) == authenticated(message, hello, nonce)
    assert same == (other == message)


@given(st.lists(any_text, max_size=4), st.sampled_from(["", "\n", ",", ":", "e", "1:"]))
def test_how_a_list_is_cut_matters(items: list[str], glue: str) -> None:
    joined = replace(OFFER, segment_digests=(glue.join(items),))
    apart = replace(OFFER, segment_digests=tuple(items))

    same = authenticated(joined, HELLO, NONCE) == authenticated(apart, HELLO, NONCE)
    assert same == (joined == apart)


def test_tokens_may_hold_any_text() -> None:
    token = Secret("пароль 🔑")

    assert proves(proven(Challenge("é|"), token, START, "|"), token, START, "|")


# -- what it costs ---------------------------------------------------------------------------------


def test_the_proof_of_a_hundred_thousand_tensors_costs_one_digest_of_them() -> None:
    specs = tuple(SPEC._replace(name=f"model.layers.{i}.mlp.w13_weight") for i in range(100_000))
    manifest = Manifest(specs)
    large = replace(OFFER, manifest=manifest, segment_digests=("d" * 64,) * 4096)
    begun = perf_counter()
    digested = manifest.digest
    first = perf_counter() - begun
    begun = perf_counter()
    mac = proven(large, TOKEN, HELLO, NONCE).mac
    again = perf_counter() - begun

    assert digested
    assert mac
    assert first < 10
    assert again < first / 4, "the digest of a manifest is made once"


def test_a_proof_does_not_depend_on_the_process() -> None:
    program = (
        "import json; from tests.unit.fsm.test_auth import MESSAGES, said;"
        "print(json.dumps({name: said(name).mac for name in MESSAGES}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == {name: said(name).mac for name in MESSAGES}


# -- several tokens --------------------------------------------------------------------------------

OLD = Secret("the token before this one")


def test_a_challenge_proves_each_token_and_no_other() -> None:
    message = challenge((OLD, TOKEN), START, NONCE)

    assert challenges(message, OLD, START)
    assert challenges(message, TOKEN, START)
    assert not challenges(message, Secret("another token"), START)
    assert not challenges(replace(message, nonce="other"), TOKEN, START)
    assert not challenges(message, TOKEN, replace(START, nonce="other"))
    assert message.mac != message.macs[0]


def test_a_challenge_of_one_token_is_what_it_was_before_there_could_be_several() -> None:
    assert challenge((TOKEN,), START, NONCE) == proven(Challenge(NONCE), TOKEN, START, NONCE)


def test_the_server_finds_the_token_that_a_proof_is_of() -> None:
    proof = proven(PLAIN, TOKEN, START, NONCE)

    assert known(proof, (OLD, TOKEN), START, NONCE) == TOKEN
    assert known(proof, (OLD,), START, NONCE) is None
    assert known(proof, (), START, NONCE) is None
