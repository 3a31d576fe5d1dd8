"""The first frame of a connection says what it is; until then it has no session."""

import pytest

from netloader.fsm.events import ConnectionLost, DeadlinePassed, StopRequested
from netloader.fsm.messages import Lane, Request
from netloader.fsm.reasons import Reason
from netloader.fsm.session import FRAME_BEFORE_TRUST
from netloader.wire import Acceptor, Control, Decision, Refusal, encode
from netloader.wire.frames import HEADER
from tests.support.messages import hello

DEADLINE = 5.0
LANE = Lane("session-1", 3)


def decided(stream: bytes, cut: int = 1 << 20) -> tuple[Decision | None, bytes]:
    """What a stream of bytes is, and what an acceptor that reads no more than it wants leaves."""
    acceptor, at = Acceptor(DEADLINE), 0
    decision: Decision | None = None
    while decision is None and at < len(stream):
        data = stream[at : at + min(cut, acceptor.wanted)]
        at += len(data)
        decision = acceptor.receive_data(data)
    return decision, stream[at:]


@pytest.mark.parametrize("cut", [1, 8, 1 << 20])
def test_a_message_makes_a_control_connection_and_none_of_its_bytes_is_lost(cut: int) -> None:
    stream = encode(hello()) + encode(Request((0,)))
    decision, rest = decided(stream, cut)

    assert isinstance(decision, Control)
    assert decision.data + rest == stream


@pytest.mark.parametrize("cut", [1, 8, 1 << 20])
def test_the_bytes_after_the_first_frame_of_a_lane_are_left_alone(cut: int) -> None:
    assert decided(encode(LANE) + b"bytes of weights", cut) == (LANE, b"bytes of weights")


@pytest.mark.parametrize(
    "words",
    [b"GET / HTTP/1.1\r\n", bytes(9), encode(hello())[:5] + (1 << 31).to_bytes(4, "big")],
    ids=["http", "zeros", "oversized"],
)
def test_bytes_of_another_protocol_are_for_a_session_to_answer(words: bytes) -> None:
    decision, rest = decided(words)

    assert isinstance(decision, Control)
    assert decision.data + rest == words


def test_a_peer_that_goes_is_refused_with_what_it_said() -> None:
    acceptor = Acceptor(DEADLINE)
    assert acceptor.receive_data(b"NE") is None

    lost = ConnectionLost("ConnectionResetError")
    assert acceptor.receive_eof("ConnectionResetError") == Refusal(b"NE", lost)


def test_a_peer_that_says_nothing_is_refused_at_its_deadline() -> None:
    acceptor = Acceptor(DEADLINE)
    acceptor.receive_data(b"N")

    assert acceptor.next_timeout() == DEADLINE
    assert acceptor.handle_timeout(DEADLINE - 0.001) is None
    assert acceptor.handle_timeout(DEADLINE) == Refusal(b"N", DeadlinePassed())


def test_an_owner_may_refuse_at_any_time() -> None:
    busy = StopRequested(Reason.BUSY, "full")
    assert Acceptor(DEADLINE).refuse(busy) == Refusal(b"", busy)


def test_no_more_than_one_small_frame_is_read() -> None:
    acceptor = Acceptor(DEADLINE)
    header = encode(hello())[:5] + FRAME_BEFORE_TRUST.to_bytes(4, "big")
    assert acceptor.receive_data(header) is None
    assert acceptor.wanted == FRAME_BEFORE_TRUST
    assert len(header) == HEADER.size
