"""A serving process under siege: whatever strangers do to its port, honest clients are served.

The server runs in a process of its own, so its descriptors, threads, memory and log are read from
outside, and everything that happens here happens to the same one server.
"""

import contextlib
import http.client
import json
import random as chance
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from netloader.config import Endpoint
from netloader.fsm.messages import Answer, Begin, Complete, Lane, Opened, Reject, Request, Unopened
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.io import fill
from netloader.io.clock import monotonic
from netloader.wire.frames import HEADER, encode
from tests.e2e.load_probe import (
    CLIENT,
    HANDSHAKE_S,
    MARK,
    PATIENCE_S,
    ROOT,
    TRANSPORTS,
    Attack,
    Host,
    again_and_again,
    citadel,
)
from tests.support.sockets import frame_of, reset
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
    random,
    serving,
)

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with Host(tmp_path_factory.mktemp("host") / "log.jsonl") as host:
        yield host


# -- what strangers say --------------------------------------------------------------------------


def call(endpoint: Endpoint) -> socket.socket:
    return socket.create_connection((endpoint.host, endpoint.port), timeout=SOON_S)


def says(data: bytes) -> Attack:
    """Say it, and wait for the end of the connection."""

    def attack(endpoint: Endpoint) -> None:
        with call(endpoint) as sock:
            sock.sendall(data)
            while sock.recv(1 << 16):
                pass

    return attack


def tls_hello(endpoint: Endpoint) -> None:
    context = ssl.create_default_context()
    with call(endpoint) as sock, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(sock, server_hostname=f"{MARK}.example")


def http_get(endpoint: Endpoint) -> None:
    client = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=SOON_S)
    with contextlib.closing(client):
        client.request("GET", f"/{MARK}", headers={"X-From": MARK})
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            client.getresponse()


def frame(document: bytes) -> bytes:
    return frame_of(len(document), document)


def hello_with(**changes: Any) -> bytes:
    """An honest hello but for some fields of other types."""
    document = json.loads(encode(hello())[HEADER.size :])
    document["body"].update(changes)
    return frame(json.dumps(document).encode())


NOISE = chance.Random(7).randbytes(100_000)

WORDS: dict[str, Attack] = {
    "a tls client hello": tls_hello,
    "an http request": http_get,
    "random bytes": says(NOISE),
    "random bytes in a frame": says(frame(NOISE[:60_000])),
    "zeros in a frame": says(frame(bytes(60_000))),
    "not utf-8": says(
        frame(b'{"kind": "hello", "body": {"serves_at": "' + b"\xff\xfe" * 9 + b'"}}')
    ),
    "not utf-8 and no frame": says(b"\xff\xfe" + MARK.encode() + b"\n"),
    "a text for an integer": says(hello_with(versions=[MARK])),
    "a fraction for an integer": says(hello_with(versions=[1.5])),
    "true for an integer": says(hello_with(versions=[True])),
    "an integer of 400 bits": says(hello_with(versions=[2**400])),
    "an integer for a text": says(hello_with(serves_at=7, layouts=[MARK])),
    "an integer for a list": says(hello_with(versions=1, serves_at=MARK)),
    "nothing for an object": says(hello_with(identity=None, serves_at=MARK)),
    "an unknown purpose": says(hello_with(purpose=MARK)),
    "an unknown kind": says(frame(json.dumps({"kind": MARK, "body": {}}).encode())),
    "a lane of a text": says(
        frame(json.dumps({"kind": "lane", "body": {"session": MARK, "index": "0"}}).encode())
    ),
    "a lane of nobody": says(encode(Lane(MARK, 0))),
    "a frame just too large": says(frame_of(64 * 1024 + 1, b"")),
    "a frame of 4 GiB": says(frame_of(2**32 - 1, MARK.encode())),
}


@pytest.mark.parametrize("words", WORDS)
def test_whatever_is_said_to_the_port_honest_clients_are_served(host: Host, words: str) -> None:
    with host.unharmed(), again_and_again(WORDS[words], host.endpoint):
        for transport in TRANSPORTS:
            host.serves(transport)


def test_endless_zeros_cost_neither_memory_nor_time(host: Host) -> None:
    memory = host.peak_kib()
    with host.unharmed(), again_and_again(says(bytes(64 * MIB)), host.endpoint):
        for transport in TRANSPORTS:
            host.serves(transport)
    assert host.peak_kib() - memory < 16 * 1024


def test_an_offer_larger_than_one_read_is_understood() -> None:
    names = [f"{'layer' * 60}{i}" for i in range(2000)]
    source = module_of(**{name: random(1, seed=i) for i, name in enumerate(names)})
    target = module_of(**{name: torch.zeros(1) for name in names})
    with serving(source) as server:
        assert fill(target, [server.endpoint], IDENTITY, asking()).ok
    assert contents(target) == contents(source)


# -- peers that leave without a word -------------------------------------------------------------


def in_a_frame(peer: Peer) -> None:
    peer.sock.sendall(encode(hello())[:20])


def offered(peer: Peer) -> None:
    peer.offered()


def offered_gloo(peer: Peer) -> None:
    peer.offered("gloo")


def asking_for_all(peer: Peer, endpoint: Endpoint, transport: str) -> Peer:
    """Take an offer up, and return the data lane."""
    offer = peer.offered(transport)
    lane = Peer.call(endpoint)
    lane.say(Lane(offer.session, 0))
    peer.say(Answer(transport))
    if transport == "tcp":  # a group is joined by two, and this peer never joins
        assert peer.hear() == Opened(transport)
        peer.say(Request(tuple(range(len(offer.segment_digests))), 1))
        assert peer.hear() == Begin()
    return lane


def in_the_transfer(transport: str, *, first: str) -> Attack:
    """Reset one of the two connections when bytes move, and then the other."""

    def attack(endpoint: Endpoint) -> None:
        with Peer.call(endpoint) as peer, asking_for_all(peer, endpoint, transport) as lane:
            assert lane.sock.recv(1)
            if first == "lane":
                reset(lane.sock)
                answer = peer.hear()
                assert answer is None or isinstance(answer, Reject | Unopened)
            reset(peer.sock)
            reset(lane.sock)

    return attack


def when_all_is_sent(endpoint: Endpoint) -> None:
    """Take every byte, and leave before saying whether they were right."""
    with Peer.call(endpoint) as peer, asking_for_all(peer, endpoint, "tcp") as lane:
        while not isinstance(lane_end(peer, lane), Complete):
            pass
        reset(peer.sock)


def lane_end(peer: Peer, lane: Peer) -> object:
    """Read what there is on either connection; what the control connection says, if anything."""
    ready, _, _ = select.select([peer.sock, lane.sock], [], [], SOON_S)
    assert ready
    if lane.sock in ready and not lane.sock.recv(MIB) and peer.sock not in ready:
        return peer.hear()
    return peer.hear() if peer.sock in ready else None


def leaving(stage: Callable[[Peer], object]) -> Attack:
    """Reset the connection at a stage of the conversation."""

    def attack(endpoint: Endpoint) -> None:
        with Peer.call(endpoint) as peer:
            stage(peer)
            reset(peer.sock)

    return attack


EXITS: dict[str, Attack] = {
    "before a word": leaving(lambda peer: None),
    "in a frame": leaving(in_a_frame),
    "after hello": leaving(lambda peer: peer.say(hello())),
    "after the offer": leaving(offered),
    "after an offer of gloo": leaving(offered_gloo),
    "in the transfer": in_the_transfer("tcp", first="control"),
    "a lane in the transfer": in_the_transfer("tcp", first="lane"),
    "in the rendezvous of gloo": in_the_transfer("gloo", first="control"),
    "a lane in the rendezvous of gloo": in_the_transfer("gloo", first="lane"),
    "before the last word": when_all_is_sent,
}


@pytest.mark.parametrize("moment", EXITS)
def test_a_reset_at_any_moment_leaves_the_server_as_it_was(host: Host, moment: str) -> None:
    with host.unharmed(), again_and_again(EXITS[moment], host.endpoint):
        for transport in TRANSPORTS:
            host.serves(transport)


# -- peers that stay -----------------------------------------------------------------------------


def test_five_hundred_idle_connections_cost_their_slots_only_until_the_deadline(host: Host) -> None:
    with host.unharmed(), contextlib.ExitStack() as stack:
        idle = [stack.enter_context(Peer.call(host.endpoint)) for _ in range(500)]
        for transport in TRANSPORTS:
            host.serves(transport)
        assert eventually(host.is_calm, PATIENCE_S)  # though every one of them is still there
        answers = [peer.hear() for peer in idle]

    assert {answer.reason for answer in answers if isinstance(answer, Reject)} <= {
        "busy",
        "deadline_passed",
    }
    assert all(answer is None or isinstance(answer, Reject) for answer in answers)


def test_peers_that_drip_are_let_go_at_the_deadline_of_the_phase(host: Host) -> None:
    # A deadline per read would be stretched by every byte, to 30 s for this hello.
    words = encode(hello())
    start = monotonic()
    with host.unharmed(), contextlib.ExitStack() as stack:
        drips = [stack.enter_context(call(host.endpoint)) for _ in range(20)]
        for sock in drips:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sent, pause = 0, threading.Event()
        while drips and sent < len(words):
            ended, _, _ = select.select(drips, [], [], 0)
            drips = [sock for sock in drips if sock not in ended]
            for sock in drips:
                sock.sendall(words[sent : sent + 1])
            sent += 1
            pause.wait(0.1)
            if sent == 5:
                for transport in TRANSPORTS:
                    host.serves(transport)
        lasted = monotonic() - start

    assert drips == []
    assert HANDSHAKE_S <= lasted < HANDSHAKE_S + SOON_S


def test_a_server_dials_nobody(host: Host) -> None:
    # Over tcp only the server's port has to be reachable; gloo connects in its own way.
    host.serves("tcp")
    with Peer.call(host.endpoint) as peer:
        peer.sock.sendall(hello_with(source="192.0.2.1:9", callback="http://192.0.2.1/"))
        assert type(peer.hear()).__name__ == "Offer"  # fields of a newer peer are ignored

    assert host.dialled() == []


# -- clients -------------------------------------------------------------------------------------


@pytest.fixture
def hole() -> Iterator[Endpoint]:
    """An address that swallows every packet: a full backlog drops SYNs, and needs no network."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield Endpoint(*listener.getsockname())


def test_a_blackholed_address_costs_its_connect_deadline(host: Host, hole: Endpoint) -> None:
    target = citadel(50)
    options = asking(deadlines=replace(FAST, connect_s=1))

    outcome = fill(target, [hole, host.endpoint], IDENTITY, options)

    first, whole = outcome.attempts
    assert first.reason in {Reason.UNREACHABLE, Reason.DEADLINE_PASSED}
    assert 0.9 <= first.seconds[State.LISTEN] < 1 + SOON_S
    assert whole.reason is Reason.VERIFIED
    assert contents(target) == host.expected


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_receiver_is_ready_before_the_server_is_told_to_send(
    host: Host, transport: str
) -> None:
    def serve() -> None:
        with Peer(listener.accept()[0]) as control:
            control.hear()
            control.say(real)
            assert isinstance(control.hear(), Answer)
            listener.setblocking(False)  # whoever is not in the queue by now came too late
            with contextlib.suppress(BlockingIOError):
                while True:
                    with Peer(listener.accept()[0]) as lane:
                        lanes.append(lane.hear())

    lanes: list[object] = []
    with Peer.call(host.endpoint) as peer:
        real = peer.offered(transport)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        here = Endpoint(*listener.getsockname())
        fill(citadel(50), [here], IDENTITY, asking(transport, lanes=3))
        thread.join()

    expected = 3 if transport == "tcp" else 1
    assert lanes == [Lane(real.session, index, transport) for index in range(expected)]


GARBAGE = {
    "MASTER_ADDR": "192.0.2.1",
    "MASTER_PORT": "not a port",
    "RANK": "5",
    "WORLD_SIZE": "9",
    "LOCAL_RANK": "x",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RUN_ID": "other",
    "GLOO_SOCKET_IFNAME": "nonexistent0",
    "TP_SOCKET_IFNAME": "nonexistent0",
    "NCCL_SOCKET_IFNAME": "nonexistent0",
    **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://192.0.2.1:9"),
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "socks5://192.0.2.1:9"),
}


def test_the_environment_does_not_reach_into_a_transfer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in GARBAGE.items():
        monkeypatch.setenv(name, value)
    with Host(tmp_path / "log.jsonl") as server:
        for transport in TRANSPORTS:
            command = [sys.executable, "-c", CLIENT, transport, str(server.endpoint)]
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
            )
            assert done.returncode == 0, done.stderr
