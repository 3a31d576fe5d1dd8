"""Bytes to messages: whole, in extents, with a tail, cut, forged and oversized."""

import json
from collections.abc import Iterator
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netloader.fsm.events import Violated
from netloader.fsm.identity import Difference, Identity
from netloader.fsm.manifest import Manifest, TensorSpec
from netloader.fsm.messages import (
    Answer,
    Begin,
    Candidate,
    Challenge,
    Complete,
    Description,
    Have,
    Hello,
    Lane,
    Message,
    Offer,
    Opened,
    Purpose,
    Reject,
    Request,
    Start,
    Status,
    Unopened,
    Verified,
)
from netloader.wire.frames import FRAME_VERSION, HEADER, MAGIC, Decoder, Heard, Spoken, encode
from tests.support.messages import CHALLENGE, OFFER, PROOF, REFUSAL, REQUEST, START, VERIFIED, hello

LIMIT = 4096

# -- every message there is ----------------------------------------------------------------------

texts = st.text(max_size=6)
words = st.dictionaries(texts, texts, max_size=2)
candidates = st.builds(Candidate, texts, words)
names = st.lists(texts, max_size=2).map(tuple)
counts = st.integers(0, 2**63 - 1)
indices = st.lists(counts, max_size=3).map(tuple)
ranges = st.lists(st.tuples(counts, counts), max_size=3).map(tuple)
seconds = st.floats(0, 1e6)
identities = st.builds(Identity, words, words)
differences = st.lists(st.builds(Difference, texts, texts, texts, texts), max_size=2).map(tuple)
specs = st.builds(TensorSpec, texts, texts, indices, indices, counts, st.integers(-1, 9), counts)
statuses = st.builds(Status, texts, names, *(counts,) * 8, names, names, *(texts,) * 3)
manifests = st.lists(specs, max_size=2).map(tuple).map(Manifest)
messages: st.SearchStrategy[Spoken] = st.one_of(
    st.builds(
        Hello,
        indices,
        st.sampled_from(Purpose),
        identities,
        names,
        names,
        names,
        texts,
        texts,
        texts,
    ),
    st.builds(Start, indices, texts),
    st.builds(Challenge, texts, texts, names),
    st.builds(Description, identities, words, st.none() | statuses, st.none() | manifests),
    st.builds(
        Offer,
        *(texts, identities, texts, st.lists(candidates, max_size=3).map(tuple), texts),
        *(st.none() | manifests, counts, names, texts, st.none() | ranges, names, texts),
    ),
    st.builds(Answer, texts, words, texts),
    st.builds(Opened, texts),
    st.builds(Unopened, texts, texts),
    st.builds(Have, ranges),
    st.builds(Request, indices, counts, counts),
    st.builds(Begin, counts),
    st.builds(Complete, counts, counts),
    st.builds(Verified, counts, counts, texts),
    st.builds(Reject, texts, texts, differences, seconds, names),
    st.builds(Lane, texts, counts, texts),
)
EXAMPLES: tuple[Spoken, ...] = (
    *(START, hello(), CHALLENGE, PROOF, OFFER, REQUEST, Begin(), VERIFIED, REFUSAL),
    *(Description(Identity({"model": "m"}), {"tied": "yes"}), Complete(9), Have(((0, 2),))),
    Lane("session-1", 3),
    *(Answer("tcp", {"key": "1"}), Opened("tcp"), Unopened("hccl", "one device")),
)


def frame(document: bytes, version: int = FRAME_VERSION, magic: bytes = MAGIC) -> bytes:
    """A frame around any document, also around one that no honest peer sends."""
    return HEADER.pack(magic, version, len(document)) + document


def body(kind: str, **fields: object) -> bytes:
    return frame(json.dumps({"kind": kind, "body": fields}).encode())


def in_extents(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """`data` cut into extents of these sizes, and the rest."""
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


def heard(decoder: Decoder, *extents: bytes) -> list[Heard]:
    return [item for extent in extents for item in decoder.feed(extent)]


def test_the_examples_are_one_of_each_kind() -> None:
    assert {type(m) for m in EXAMPLES} == {*get_args(Message), Lane}


# -- what was said is what is heard --------------------------------------------------------------


@given(messages, messages)
def test_every_message_arrives_whole_byte_by_byte_and_with_a_tail(
    message: Spoken, following: Spoken
) -> None:
    data = encode(message)
    tail = encode(following)

    assert heard(Decoder(2**20), data) == [message]
    assert heard(Decoder(2**20), *(data[i : i + 1] for i in range(len(data)))) == [message]
    assert heard(Decoder(2**20), data + tail) == [message, following]
    assert heard(Decoder(2**20), data + tail[:-1], tail[-1:]) == [message, following]


@given(st.lists(messages, max_size=4), st.lists(st.integers(0, 400), max_size=12))
def test_how_the_network_cuts_a_stream_does_not_matter(
    spoken: list[Spoken], sizes: list[int]
) -> None:
    stream = b"".join(map(encode, spoken))

    assert heard(Decoder(2**20), *in_extents(stream, sizes)) == spoken


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_frame_cut_at_any_byte_waits_for_exactly_the_rest(message: Spoken) -> None:
    data = encode(message)
    for cut in range(len(data)):
        decoder = Decoder(2**20)

        assert decoder.feed(data[:cut]) == []
        assert decoder.buffered == cut
        whole = len(data) if cut >= HEADER.size else HEADER.size
        assert decoder.wanted == whole - cut
        assert decoder.feed(data[cut:]) == [message]
        assert decoder.buffered == 0


@given(messages, st.binary(max_size=40))
def test_reading_only_wanted_bytes_takes_none_of_a_lane(message: Spoken, raw: bytes) -> None:
    stream = encode(message) + raw
    decoder = Decoder(2**20)
    items: list[Heard] = []
    while not items:
        wanted = decoder.wanted
        assert wanted > 0
        items = decoder.feed(stream[:wanted])
        stream = stream[wanted:]

    assert (items, stream) == ([message], raw)


# -- a newer peer, a broken peer, a hostile peer -------------------------------------------------


def test_a_field_this_version_does_not_know_is_ignored() -> None:
    document = {"kind": "complete", "since": 2031, "body": {"nbytes": 7, "joules": {"a": [1]}}}

    assert heard(Decoder(LIMIT), frame(json.dumps(document).encode())) == [Complete(7)]


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"GET / HTTP/1.1\r\n", "bytes of another protocol"),
        (
            b"\x16\x03\x01",
            "a TLS handshake, and this side has no TLS; set TLS_CERT and TLS_KEY here",
        ),
        (b"NETX", "bytes of another protocol"),
        (MAGIC + b"\x02", "frame version 2, this side reads 1"),
        (frame(b""), "a frame that is no message"),
        (frame(b"[]"), "a frame that is no message"),
        (frame(b'{"kind": "begin"}'), "a frame that is no message"),
        (frame(b'{"kind": 3, "body": {}}'), "a frame that is no message"),
        (frame(b"\xff\xfe"), "a frame that is no message"),
        (frame(b"[" * 3000), "a frame that is no message"),
        (body("shutdown"), "a message of an unknown kind"),
        (body("Begin"), "a message of an unknown kind"),
        (body("complete"), "a complete with a field missing or of a wrong type"),
        (body("complete", nbytes="7"), "a complete with a field missing or of a wrong type"),
        (body("complete", nbytes=True), "a complete with a field missing or of a wrong type"),
        (body("complete", nbytes=None), "a complete with a field missing or of a wrong type"),
        (body("request", segments=[0.5]), "a request with a field missing or of a wrong type"),
        (body("opened", transport="\ud800"), "a frame that is no message"),
        (
            frame(b'{"kind":"complete","body":{"nbytes":' + b"9" * 5000 + b"}}"),
            "a frame of 5038 bytes where 4096 are allowed",
        ),
    ],
)
def test_a_bad_frame_is_one_violation_without_the_peers_text(data: bytes, detail: str) -> None:
    assert heard(Decoder(LIMIT), data) == [Violated(detail)]


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "document",
    [
        b'{"kind":"complete","body":{"nbytes":' + b"9" * 5000 + b"}}",
        b'{"kind":"complete","body":{"nbytes":' + DEEP + b"}}",
        b'{"kind":"complete","body":' + DEEP + b"}",
        b'{"kind":"complete","body":{"nbytes":1},"more":' + DEEP + b"}",
        b'{"kind":"comp\xfflete","body":{"nbytes":1}}',
        b'{"kind":"opened","body":{"transport":"\xff"}}',
        b'{"kind":"opened","body":{"transport":"\\ud800"}}',
    ],
    ids=["long number", "deep field", "deep body", "deep more", "kind", "text", "half a character"],
)
def test_what_no_reader_can_take_is_a_violation_too(document: bytes) -> None:
    decoder = Decoder(2**20)

    (item,) = decoder.feed(frame(document))

    assert isinstance(item, Violated)
    assert decoder.buffered == 0


@given(messages)
def test_bytes_after_a_violation_are_discarded(message: Spoken) -> None:
    decoder = Decoder(2**20)

    items = heard(decoder, encode(message) + b"garbage" + encode(message), encode(message))

    assert items == [message, Violated("bytes of another protocol")]
    assert decoder.buffered == 0


@given(st.integers(1, 2**32 - 1 - LIMIT))
def test_an_oversized_frame_is_refused_before_its_bytes_arrive(excess: int) -> None:
    decoder = Decoder(LIMIT)
    header = HEADER.pack(MAGIC, FRAME_VERSION, LIMIT + excess)

    assert heard(decoder, header[:-1]) == []
    detail = f"a frame of {LIMIT + excess} bytes where {LIMIT} are allowed"
    assert heard(decoder, header[-1:]) == [Violated(detail)]
    assert decoder.buffered == 0


def test_a_frame_of_exactly_the_limit_is_read_and_the_limit_may_grow() -> None:
    data = encode(OFFER)
    decoder = Decoder(len(data) - HEADER.size)
    assert decoder.feed(data) == [OFFER]

    decoder.limit -= 1
    (item,) = decoder.feed(data)
    assert isinstance(item, Violated)

    decoder = Decoder(10)
    assert decoder.feed(data[: HEADER.size - 1]) == []
    decoder.limit = len(data)
    assert decoder.feed(data[HEADER.size - 1 :]) == [OFFER]


# -- any bytes at all ----------------------------------------------------------------------------

forged = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=60).map(frame),
    messages.map(encode),
    st.tuples(messages.map(encode), st.integers(0, 400), st.binary(min_size=1, max_size=3)).map(
        lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + len(t[2]) :]  # some bytes written over
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | texts,
        lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(texts, deeper, max_size=3),
        max_leaves=6,
    ).map(lambda value: body("offer", session=value, manifest=value, nbytes=value)),
)


@given(st.lists(forged, max_size=6), st.lists(st.integers(0, 90), max_size=12))
@example([b'NETL\x01\x00\x00\x00\x02{"'], [])
def test_no_byte_of_a_peer_raises_and_little_is_held(sent: list[bytes], sizes: list[int]) -> None:
    decoder = Decoder(LIMIT)
    violations = 0
    for extent in in_extents(b"".join(sent), sizes):
        items = decoder.feed(extent)
        assert not violations or items == []
        violations += sum(isinstance(item, Violated) for item in items)
        assert decoder.buffered < LIMIT + HEADER.size
        assert 0 < decoder.wanted <= LIMIT + HEADER.size

    assert violations <= 1
