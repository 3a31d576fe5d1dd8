"""A TCP load balancer in front of equal replicas: data connections land on another server."""

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from netloader.config import Endpoint
from netloader.fsm.messages import Lane, Reject
from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from netloader.io.failure import TransferError
from netloader.io.transports import refusal
from netloader.io.transports.lanes import set_stall
from netloader.wire.frames import MAGIC, encode
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import (
    IDENTITY,
    SOON_S,
    asking,
    connected_pair,
    contents,
    module_of,
    serving,
    zoo,
)

pytestmark = pytest.mark.usefixtures("driver")


@contextlib.contextmanager
def balancer(*servers: Endpoint) -> Iterator[Endpoint]:
    """Each connection goes to the next server."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        turn = itertools.cycle(servers)
        with contextlib.suppress(OSError):
            while True:
                near = sockets.enter_context(listener.accept()[0])
                server = next(turn)
                far = socket.create_connection((server.host, server.port), SOON_S)
                sockets.enter_context(far)
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    with contextlib.ExitStack() as sockets:
        listener = socket.create_server(("127.0.0.1", 0))
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield Endpoint("127.0.0.1", listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            accepting.join(SOON_S)


@pytest.mark.parametrize(("transport", "lanes"), [("tcp", 1), ("tcp", 2), ("tcp", 4), ("gloo", 1)])
def test_a_balancer_in_front_is_named_with_what_would_help(transport: str, lanes: int) -> None:
    with (
        serving(zoo(1)) as one,
        serving(zoo(1)) as other,
        balancer(one.endpoint, other.endpoint) as front,
    ):
        outcome = fill(zoo(2), [front], IDENTITY, asking(transport, lanes=lanes))

    (attempt,) = outcome.attempts
    assert attempt.reason is Reason.UNKNOWN_SESSION
    assert "load balancer" in attempt.detail
    assert "name the servers themselves" in attempt.detail


def test_a_load_balancer_in_front_of_one_server_works() -> None:
    with serving(zoo(1)) as server, balancer(server.endpoint) as front:
        target = zoo(2)
        assert fill(target, [front], IDENTITY, asking(lanes=3)).ok
    assert contents(target) == contents(zoo(1))


# -- what passes for a refusal -------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = connected_pair()
    set_stall(near, SOON_S)
    with near, far:
        yield near, far


def test_a_refusal_in_single_bytes_is_recognized(ends: tuple[socket.socket, Any]) -> None:
    def drip() -> None:
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in refusal.ANSWER:
            far.sendall(bytes([byte]))
        far.close()

    near, far = ends
    dripping = threading.Thread(target=drip)
    dripping.start()
    with pytest.raises(TransferError) as raised:
        refusal.check(near, refusal.LONGEST)
    dripping.join()
    assert raised.value.reason is Reason.UNKNOWN_SESSION


ODD_WEIGHTS = {
    "the magic word": MAGIC,
    "a whole refusal, and more": refusal.ANSWER + b"weights",
    "another message": encode(Lane("x", 0)),
    "another reason": encode(Reject("identity_mismatch", "no")),
    "zeros": bytes(2000),
    "a header and no end": refusal.ANSWER[:9] + b"\xff" * 2000,
}


@pytest.mark.parametrize("words", ODD_WEIGHTS)
def test_weights_that_look_like_a_frame_arrive_whole(
    words: str, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, far = ends
    far.sendall(ODD_WEIGHTS[words])
    far.shutdown(socket.SHUT_WR)
    refusal.check(near, len(ODD_WEIGHTS[words]))
    assert near.recv(4096) == ODD_WEIGHTS[words][:4096]

    weights = torch.frombuffer(bytearray(ODD_WEIGHTS[words]), dtype=torch.uint8)
    target = module_of(w=torch.zeros_like(weights))
    start = monotonic()
    with serving(module_of(w=weights)) as server:
        assert fill(target, [server.endpoint], IDENTITY, asking()).ok
    assert monotonic() - start < SOON_S, "well within the stall deadline"
    assert contents(target)["w"] == ODD_WEIGHTS[words]


def test_a_data_connection_that_says_nothing_is_given_up_in_time(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    near, _ = ends
    set_stall(near, 0.2)
    with pytest.raises(BlockingIOError):
        refusal.check(near, refusal.LONGEST)
