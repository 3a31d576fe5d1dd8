"""A flood of connections that are no client's costs little, and locks out nobody else."""

import socket
from contextlib import closing

import pytest

from netloader.config import Endpoint, Secret
from netloader.fsm.messages import Reject, Start
from netloader.io.strangers import BURST, MOST_HOSTS, PER_S, Strangers
from netloader.log import capture, get_logger
from netloader.wire.frames import encode
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import IDENTITY, SOON_S, Peer, asking, hello, serving, zoo

FLOODER = "127.0.0.2"
TOKEN = Secret("a token of sixteen characters")
WORDS = {"noise": b"GET / HTTP/1.1\r\n\r\n", "a hello without a token": encode(hello())}


def heard(server: Endpoint, words: bytes, host: str = FLOODER) -> bytes:
    """What a peer at an address is answered; nothing if it is closed at once."""
    with closing(socket.socket()) as sock:
        sock.settimeout(SOON_S)
        sock.bind((host, 0))
        sock.connect((server.host, server.port))
        try:
            sock.sendall(words)
            sock.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: sock.recv(1 << 16), b""))
        except OSError:  # closed before all was said
            return b""


def test_a_flood_is_soon_closed_unread_and_a_client_elsewhere_is_served() -> None:
    with capture() as lines, serving(zoo(1), token=TOKEN) as server:
        answers = [heard(server.endpoint, WORDS["noise"]) for _ in range(3 * BURST)]
        assert fill(zoo(2), [server.endpoint], IDENTITY, asking(token=TOKEN)).ok
    told = [line for line in lines if line["event"] == "netloader.session.closed"]
    refused = [line for line in lines if line["event"] == "netloader.listener.refused"]
    assert b"protocol_violation" in answers[0]
    assert b"" in answers
    assert len([line for line in told if line["network.peer.address"] == FLOODER]) < 2.9 * BURST
    assert 1 <= len(refused) <= 3


def test_clients_that_are_told_to_wait_are_no_strangers() -> None:
    with serving(zoo(1), max_clients=1) as server, Peer.call(server.endpoint) as first:
        first.offered()
        for _ in range(3 * BURST):  # a host that fails may go on failing at PER_S
            with Peer.call(server.endpoint) as peer:
                peer.say(hello())
                answer = peer.hear()
                assert isinstance(answer, Reject)
                assert answer.reason == "busy"


def test_a_host_may_fail_again_after_a_while_and_others_at_any_time() -> None:
    strangers = Strangers(get_logger("server"))
    bad, good = Endpoint("192.0.2.1", 7), Endpoint("192.0.2.2", 7)
    for _ in range(BURST):
        assert strangers.permits(bad, 0.0)
        strangers.failed(bad, 0.0)
    assert not strangers.permits(bad, 0.0)
    assert strangers.permits(good, 0.0)
    assert strangers.permits(bad, 1.0 / PER_S)


@pytest.mark.parametrize("same", [True, False])
def test_of_ipv6_a_host_has_64_bits(same: bool) -> None:
    strangers = Strangers(get_logger("server"))
    for i in range(BURST):
        strangers.failed(Endpoint(f"2001:db8::{i:x}", 7), 0.0)
    other = "2001:db8::ffff:1" if same else "2001:db8:0:1::1"
    assert strangers.permits(Endpoint(other, 7), 0.0) is not same


def test_what_is_remembered_is_bounded() -> None:
    strangers = Strangers(get_logger("server"))
    first = Endpoint("10.0.0.0", 7)
    for _ in range(BURST):
        strangers.failed(first, 0.0)
    assert not strangers.permits(first, 0.0)
    for i in range(MOST_HOSTS):
        strangers.failed(Endpoint(f"10.1.{i >> 8}.{i & 255}", 7), 0.0)
    assert strangers.permits(first, 0.0)


def test_a_start_that_gets_its_challenge_and_goes_counts() -> None:
    words = encode(Start((2,), "0" * 32))
    with serving(zoo(1), token=TOKEN) as server:
        answers = [heard(server.endpoint, words) for _ in range(2 * BURST)]
    assert b"challenge" in answers[0]
    assert b"" in answers
