"""One port, any number of clients: whatever some of them do, the others are served."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from netloader.config import Endpoint, Secret
from netloader.fsm.messages import PROTOCOL_VERSION, Begin, Lane, Offer, Reject, Request
from netloader.fsm.reasons import Reason
from netloader.fsm.terms import MAX_LANES
from netloader.io import Server, reception
from netloader.io.clock import monotonic
from netloader.io.listener import bind
from netloader.wire.frames import HEADER, encode
from tests.support.sockets import frame_of, reset
from tests.unit.io.drivers import fill, serve
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    MIB,
    SOON_S,
    Peer,
    asking,
    contents,
    eventually,
    hello,
    module_of,
    our_threads,
    random,
    serving,
    zoo,
)

pytestmark = pytest.mark.usefixtures("driver")
Lines = list[dict[str, Any]]


def assert_served(server: Server, transport: str = "tcp") -> None:
    """A good client gets everything."""
    target = zoo(77)
    assert fill(target, [server.endpoint], IDENTITY, asking(transport)).ok
    assert contents(target) == contents(zoo(1))


# -- peers that are no clients -------------------------------------------------------------------


def say(*parts: bytes) -> Callable[[socket.socket], None]:
    return lambda sock: sock.sendall(b"".join(parts))


def reset_in_a_frame(sock: socket.socket) -> None:
    sock.sendall(encode(hello())[:20])
    reset(sock)


BAD_WORDS: dict[str, Callable[[socket.socket], None]] = {
    "nothing": socket.socket.close,
    "reset": reset,
    "reset in a frame": reset_in_a_frame,
    "half a frame": say(encode(hello())[:20]),
    "zeros": say(bytes(100)),
    "not utf-8": say(b"\xff\xfe\xfd"),
    "http": say(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
    "tls": say(b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", bytes(160)),
    "oversized": say(frame_of(1 << 31, b"")),
    "no message": say(frame_of(2, b"[]")),
    "deep": say(frame_of(60_000, b"[" * 60_000)),
    "out of turn": say(encode(Request((0,)))),
    "a lane": say(encode(Lane("no such session", 0))),
    "a lane far off": say(encode(Lane("x", -(2**60)))),
    "two hellos": say(encode(hello()) * 2),
}


@pytest.mark.parametrize("words", BAD_WORDS)
def test_the_listener_survives_whatever_is_said_to_it(words: str) -> None:
    with serving(zoo(1)) as server:
        for _ in range(3):
            sock = socket.create_connection((server.endpoint.host, server.endpoint.port))
            BAD_WORDS[words](sock)
            sock.close()
        assert_served(server)


@pytest.mark.parametrize("words", ["http", "tls", "oversized", "no message", "deep", "zeros"])
def test_bytes_of_another_protocol_are_answered_with_a_refusal_and_a_line(
    words: str, captured: Lines
) -> None:
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        BAD_WORDS[words](peer.sock)
        answer = peer.hear()
        assert isinstance(answer, Reject)
        assert answer.reason == "protocol_violation"
        assert peer.hear() is None

    (line,) = [line for line in captured if line["event"] == "netloader.peer.violation"]
    assert line["severity"] == "WARNING"
    assert line["network.peer.address"] == "127.0.0.1"


def test_a_peer_that_talks_on_still_hears_why_it_was_refused() -> None:
    # Thrown away header by header, this would take a second of processor time and then a reset.
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        peer.sock.sendall(bytes(32 * MIB))
        answer = peer.hear()

    assert isinstance(answer, Reject)
    assert answer.reason == "protocol_violation"


def test_silent_connections_keep_nobody_waiting(captured: Lines) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(zoo(1)))
        for _ in range(50):
            stack.enter_context(Peer.call(server.endpoint))
        start = monotonic()
        assert_served(server)
        assert_served(server, "gloo")
        assert monotonic() - start < FAST.handshake_s

    assert not [line for line in captured if line["severity"] == "ERROR"]


def test_a_silent_connection_is_let_go_after_its_handshake_deadline() -> None:
    quick = replace(FAST, handshake_s=0.3)
    with serving(zoo(1), deadlines=quick) as server, Peer.call(server.endpoint) as peer:
        answer = peer.hear()
        assert isinstance(answer, Reject)
        assert (answer.reason, answer.detail) == ("deadline_passed", "in handshake")
        assert peer.hear() is None


def test_a_hello_that_drips_does_not_stretch_the_deadline() -> None:
    # A deadline is for the whole phase, not per read.
    quick = replace(FAST, handshake_s=0.5)
    with serving(zoo(1), deadlines=quick) as server, Peer.call(server.endpoint) as peer:
        start = monotonic()
        pause = threading.Event()
        with contextlib.suppress(OSError):
            for byte in encode(hello()):
                peer.sock.sendall(bytes([byte]))
                pause.wait(0.02)
        assert monotonic() - start < SOON_S
        answer = peer.hear()

    assert answer is None or (isinstance(answer, Reject) and answer.reason == "deadline_passed")


def test_a_hello_in_single_bytes_is_understood() -> None:
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in encode(hello()):
            peer.sock.sendall(bytes([byte]))
        assert type(peer.hear()).__name__ == "Offer"


def test_two_messages_in_one_packet_are_both_heard(captured: Lines) -> None:
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        peer.say(hello(), Reject("stopped", "changed my mind"))
        assert eventually(lambda: [x for x in captured if x["event"].endswith("session.closed")])

    (line,) = [line for line in captured if line["event"] == "netloader.session.closed"]
    assert (line["netloader.reason"], line["netloader.by_peer"]) == ("stopped", True)


def test_an_unsupported_version_is_refused_with_both_versions_named() -> None:
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        peer.say(replace(hello(), versions=(7, 9)))
        answer = peer.hear()

    assert isinstance(answer, Reject)
    assert answer.reason == "unsupported_version"
    assert answer.detail == f"the server speaks version {PROTOCOL_VERSION}, the client 7, 9"


def test_a_newer_client_that_says_more_and_speaks_our_version_too_is_served() -> None:
    document = json.loads(encode(hello())[HEADER.size :])
    document["body"].update(versions=[PROTOCOL_VERSION + 1, PROTOCOL_VERSION], colour="blue")
    words = json.dumps({**document, "trace": 7}).encode()
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        peer.sock.sendall(frame_of(len(words), words))
        assert isinstance(peer.hear(), Offer)


def test_what_a_client_calls_itself_cannot_break_a_line_of_the_log(captured: Lines) -> None:
    forged = "tiny\nnetloader.session.closed netloader.outcome=done\x1b[31m" + "x" * 9999
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        peer.say(hello(identity={**IDENTITY, "model": forged}))
        answer = peer.hear()
        assert isinstance(answer, Reject)
        assert answer.reason == "identity_mismatch"

    values = [value for line in captured for value in line.values() if isinstance(value, str)]
    assert all(value.isprintable() and len(value) <= 500 for value in values)


def test_a_flood_of_silent_connections_costs_the_longest_silent_one_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reception, "MAX_LINKS", 4)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(zoo(1)))
        peers = [stack.enter_context(Peer.call(server.endpoint)) for _ in range(4)]
        assert_served(server)

        answer = peers[0].hear()
        assert isinstance(answer, Reject)
        assert answer.reason == "busy"


# -- data lanes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("session", ["f" * 32, "", "no such session"])
def test_a_lane_for_an_unknown_session_is_told_so_and_nothing_else(session: str) -> None:
    with serving(zoo(1), token=Secret("t")) as server, Peer.call(server.endpoint) as peer:
        peer.say(Lane(session, 0))
        reason = Reason.UNKNOWN_SESSION
        assert peer.hear() == Reject(reason.value, reason.sentence)
        assert peer.hear() is None


def test_a_lane_that_comes_after_its_session_ended_is_refused() -> None:
    def turned_away() -> bool:
        with Peer.call(server.endpoint) as lane:
            lane.say(Lane(session, 0))
            lane.sock.settimeout(0.1)
            try:
                return isinstance(lane.hear(), Reject)
            except TimeoutError:
                return False  # the server has not seen the end of the session yet

    with serving(zoo(1)) as server:
        with Peer.call(server.endpoint) as peer:
            session = peer.offered().session
        assert eventually(turned_away)


def test_a_lane_in_the_middle_of_a_conversation_is_a_violation() -> None:
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        session = peer.offered().session
        peer.say(Lane(session, 0))
        answer = peer.hear()

    assert isinstance(answer, Reject)
    assert answer.reason == "protocol_violation"


def test_bytes_of_a_lane_that_come_with_its_first_words_are_not_lost() -> None:
    # The reader takes no more than the frame, so what follows stays in the socket.
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        session = peer.offered().session
        with Peer.call(server.endpoint) as lane:
            lane.sock.sendall(encode(Lane(session, 0)) + b"ignored")
            peer.answered()
            peer.say(Request((0,)))
            assert peer.hear() == Begin()
            assert len(lane.sock.recv(1000)) > 0


def test_a_session_holds_no_more_lanes_than_it_may_ask_for() -> None:
    # Each costs the server a descriptor, so a client must not be able to leave thousands there.
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        session = peer.offered().session
        for index in (MAX_LANES, -1, 2**40):
            with Peer.call(server.endpoint) as lane:
                lane.say(Lane(session, index))
                lane.sock.settimeout(2)
                assert lane.hear() is None, index


# -- strangers -----------------------------------------------------------------------------------


def test_a_stranger_learns_nothing_when_there_is_a_token() -> None:
    with serving(zoo(1), token=Secret("t"), facts={"k": "v"}) as server:
        for words in (hello(), hello("pigeon"), hello(identity={"model": "other"})):
            with Peer.call(server.endpoint) as peer:
                peer.say(words)
                told = peer.hear()
                assert isinstance(told, Reject)
                assert (told.reason, told.differences) == ("auth_required", ())
        with Peer.call(server.endpoint) as peer:
            peer.sock.sendall(frame_of(65 * 1024, b""))
            assert isinstance(peer.hear(), Reject)


# -- the end -------------------------------------------------------------------------------------


def test_closing_frees_the_port_and_the_threads() -> None:
    before = our_threads()
    server = serve(zoo(1), IDENTITY)
    assert_served(server)
    with Peer.call(server.endpoint) as idle, Peer.call(server.endpoint) as waiting:
        waiting.offered()
        server.close()
        server.close()
        assert isinstance(idle.hear(), Reject)
        answer = waiting.hear()

    assert isinstance(answer, Reject)
    assert (answer.reason, answer.detail) == ("not_serving", "the server is closing")
    assert eventually(lambda: our_threads() <= before)
    bind(server.endpoint.host, server.endpoint.port).close()


def test_closing_does_not_wait_for_peers_that_never_hang_up() -> None:
    with contextlib.ExitStack() as stack:
        server = serve(zoo(1), IDENTITY)
        for _ in range(5):
            stack.enter_context(Peer.call(server.endpoint))
        start = monotonic()
        server.close()

        assert monotonic() - start < reception.CLOSE_S + 1
        bind(server.endpoint.host, server.endpoint.port).close()


@pytest.mark.parametrize("transport", ["tcp", "gloo"])
def test_closing_in_the_middle_tells_the_client(transport: str, captured: Lines) -> None:
    def close(done: int, total: int) -> None:
        if not closing:
            closing.append(threading.Thread(target=server.close))
            closing[0].start()
            assert eventually(lambda: any("fallback" in line.values() for line in captured))

    closing: list[threading.Thread] = []
    with serving(module_of(w=random(16 * MIB))) as server:
        options = asking(transport, report=close, lanes=1)
        (attempt,) = fill(
            module_of(w=random(16 * MIB, seed=1)), [server.endpoint], IDENTITY, options
        ).attempts
        closing[0].join()

    assert attempt.reason.value == "not_serving"
    assert attempt.detail == "the server is closing"


def test_the_log_says_where_a_server_listens_and_when_no_more(captured: Lines) -> None:
    with serving(zoo(1)) as server:
        place = server.endpoint
    events = [
        (line["event"], line["network.local.address"], line["network.local.port"])
        for line in captured
        if line["event"].startswith("netloader.listener")
    ]
    assert events == [
        ("netloader.listener.started", place.host, place.port),
        ("netloader.listener.stopped", place.host, place.port),
    ]


# -- ports ---------------------------------------------------------------------------------------


def test_a_busy_port_is_an_error_of_the_caller() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(OSError, match="in use"):
        bind("127.0.0.1", taken.getsockname()[1])


def test_the_last_port_there_is_can_be_served() -> None:
    bind("127.0.0.65", 65535).close()  # an address where nobody else has the port


def test_an_empty_host_is_every_address_of_both_families() -> None:
    with serving(zoo(1), host="") as server:
        for host in ("127.0.0.1", "::1"):
            target = zoo(2)
            here = Endpoint(host, server.endpoint.port)
            assert fill(target, [here], IDENTITY, asking()).ok
            assert contents(target) == contents(zoo(1))
