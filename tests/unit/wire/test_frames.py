"""Plain cases of frames; tests/property/test_framing.py holds the laws."""

import json

import pytest

from netloader.fsm.events import Violated
from netloader.fsm.messages import Begin, Complete, Lane, Request
from netloader.wire.frames import FRAME_VERSION, HEADER, MAGIC, Decoder, encode

LIMIT = 1000


def frame(document: bytes) -> bytes:
    return HEADER.pack(MAGIC, FRAME_VERSION, len(document)) + document


def test_two_messages_in_one_packet_and_one_over_many() -> None:
    decoder = Decoder(LIMIT)
    data = encode(Begin()) + encode(Complete(7))
    assert decoder.feed(data) == [Begin(), Complete(7)]

    heard = [
        message for byte in encode(Request((1, 2), 3)) for message in decoder.feed(bytes([byte]))
    ]
    assert heard == [Request((1, 2), 3)]
    assert decoder.buffered == 0


def test_a_reader_that_asks_for_what_is_wanted_never_takes_a_lanes_bytes() -> None:
    decoder, data = Decoder(LIMIT), encode(Lane("session", 1)) + b"weights"
    taken = 0
    while not (heard := decoder.feed(data[taken : taken + decoder.wanted])):
        taken = decoder.buffered

    assert heard == [Lane("session", 1)]
    assert data[len(data) - len(b"weights") :] == b"weights"
    assert decoder.buffered == 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1\r\n", "bytes of another protocol"),
        (b"\x16\x03\x01\x02\x00\x01", "a TLS handshake, and this side has no TLS"),
        (MAGIC + b"\x09", "frame version 9, this side reads 1"),
        (HEADER.pack(MAGIC, FRAME_VERSION, LIMIT + 1), "a frame of 1001 bytes where 1000"),
        (frame(b"\xff\xfe"), "a frame that is no message"),
        (frame(b"[1]"), "a frame that is no message"),
        (frame(b'{"kind": "dance", "body": {}}'), "a message of an unknown kind"),
        (frame(b'{"kind": "complete", "body": {"nbytes": "7"}}'), "a complete with a field"),
        (frame(b'{"kind": "complete", "body": {}}'), "a complete with a field missing"),
    ],
)
def test_bytes_that_are_no_message_are_a_violation(data: bytes, said: str) -> None:
    (heard,) = Decoder(LIMIT).feed(data)

    assert isinstance(heard, Violated)
    assert heard.detail.startswith(said)


def test_the_decoder_discards_bytes_after_a_violation() -> None:
    decoder = Decoder(LIMIT)
    assert len(decoder.feed(b"nonsense" + encode(Begin()))) == 1
    assert decoder.feed(encode(Begin())) == []
    assert decoder.buffered == 0


def test_the_fields_of_a_newer_peer_are_ignored() -> None:
    document = {"kind": "complete", "body": {"nbytes": 7, "mood": "good"}, "extra": 1}

    assert Decoder(LIMIT).feed(frame(json.dumps(document).encode())) == [Complete(7)]


def test_a_higher_limit_counts_from_the_next_frame() -> None:
    decoder = Decoder(10)
    decoder.limit = LIMIT

    assert decoder.feed(encode(Complete(7))) == [Complete(7)]
