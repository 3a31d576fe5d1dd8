"""Serving a model: one call to start, one to end, and nothing of it is left."""

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from netloader.fsm.manifest import root_digest
from netloader.fsm.messages import Begin, Complete, Lane, Reject, Request, Verified
from netloader.io import ServerOptions, WeightsError
from netloader.io.clock import monotonic
from netloader.io.store import digests
from netloader.io.store.digests import Hasher
from tests.support.sockets import reset
from tests.unit.io.drivers import fill, serve
from tests.unit.io.helpers import (
    ALGORITHM,
    FAST,
    IDENTITY,
    MIB,
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


def test_serving_returns_at_once_with_the_place_it_listens_at() -> None:
    server = serve(zoo(1), IDENTITY)
    try:
        assert server.endpoint.host == "127.0.0.1"
        assert server.endpoint.port > 0
        Peer.call(server.endpoint).sock.close()
    finally:
        server.close()


def test_a_model_with_nothing_to_serve_is_refused() -> None:
    with pytest.raises(WeightsError, match="no bytes to serve"):
        serve(nn.Identity(), IDENTITY)
    ghost = module_of(ghost=torch.empty(3, device="meta"))
    with pytest.raises(WeightsError, match="ghost has no plain memory"):
        serve(ghost, IDENTITY)


def test_a_refused_model_or_port_leaves_nothing_behind() -> None:
    before = our_threads()
    with serving(zoo(1)) as server, pytest.raises(OSError, match="in use"):
        serve(zoo(2), IDENTITY, port=server.endpoint.port)

    assert eventually(lambda: our_threads() <= before)


@pytest.mark.parametrize("transport", ["tcp", "gloo"])
def test_a_closed_server_lets_go_of_the_model(transport: str) -> None:
    def transfer() -> "weakref.ref[nn.Parameter]":
        module = zoo(1)
        with serving(module) as server:
            assert fill(zoo(2), [server.endpoint], IDENTITY, asking(transport)).ok
        return weakref.ref(module.get_parameter("embed"))

    embed = transfer()

    def gone() -> bool:
        gc.collect()
        return embed() is None

    assert eventually(gone)


def test_many_servers_and_clients_one_after_the_other_leave_no_thread() -> None:
    before = our_threads(), threading.active_count()
    for number in range(10):
        with serving(zoo(1)) as server:
            assert fill(zoo(2), [server.endpoint], IDENTITY, asking(lanes=1 + number % 3)).ok

    assert eventually(lambda: (our_threads(), threading.active_count()) <= before)


def test_the_smallest_model_there_is_is_served() -> None:
    source = module_of(x=torch.tensor(7, dtype=torch.uint8))
    target = module_of(x=torch.tensor(0, dtype=torch.uint8))
    with serving(source) as server:
        assert fill(target, [server.endpoint], IDENTITY, asking(lanes=4)).ok

    assert contents(target) == contents(source)


# -- before the digests are known ----------------------------------------------------------------


hashing = threading.Event()
"""Set when a slow hasher has begun."""


class SlowHasher:
    """Hashes until it is let go; stands for a model of a hundred gigabytes."""

    let_go = threading.Event()

    def __init__(self, threads: int) -> None:
        self._real = REAL(threads)

    def update(self, data: memoryview, /) -> object:
        hashing.set()
        self.let_go.wait(0.2)
        return self._real.update(data)

    def hexdigest(self) -> str:
        return self._real.hexdigest()


REAL: Callable[[int], Hasher] = digests.ALGORITHMS[ALGORITHM]


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    monkeypatch.setitem(digests.ALGORITHMS, ALGORITHM, SlowHasher)
    SlowHasher.let_go.clear()
    yield SlowHasher.let_go
    SlowHasher.let_go.set()


def large(seed: int) -> nn.Module:
    """Takes the slow hasher ten seconds."""
    return module_of(w=random(200, MIB // 4, seed=seed, dtype=torch.uint8))


def test_a_client_that_comes_early_waits_for_the_digests(slowly: threading.Event) -> None:
    source, target = large(1), large(2)
    with serving(source, segment_bytes=MIB) as server:
        threading.Timer(0.3, slowly.set).start()
        assert fill(target, [server.endpoint], IDENTITY, asking()).ok

    assert contents(target) == contents(source)


@pytest.mark.usefixtures("slowly")
def test_a_client_that_comes_far_too_early_is_told_when_to_come_again() -> None:
    hurried = replace(FAST, handshake_s=3)  # half of it is how long an offer may take
    with (
        serving(large(1), segment_bytes=MIB, deadlines=hurried) as server,
        Peer.call(server.endpoint) as peer,
    ):
        peer.say(hello())
        answer = peer.hear()
        SlowHasher.let_go.set()

    assert isinstance(answer, Reject)
    assert answer.reason == "not_ready"
    assert answer.retry_after_s > 0


@pytest.mark.usefixtures("slowly")
def test_closing_while_digests_are_computed_ends_that_too() -> None:
    # Otherwise a closed server goes on to read, and keeps, a model of a hundred gigabytes.
    before = our_threads()
    server = serve(large(1), IDENTITY, options=ServerOptions(segment_bytes=MIB))
    server.close()

    assert eventually(lambda: our_threads() <= before, timeout_s=3)


@pytest.mark.usefixtures("slowly")
def test_closing_while_a_client_waits_for_digests_ends_its_thread() -> None:
    before = our_threads()
    server = serve(large(1), IDENTITY, options=ServerOptions(segment_bytes=MIB, deadlines=FAST))
    with Peer.call(server.endpoint) as peer:
        peer.say(hello())
        assert eventually(lambda: "netloader-worker" in our_threads())
        start = monotonic()
        server.close()
        preparing = {"netloader-worker"}
        assert eventually(lambda: not preparing & our_threads() - before, timeout_s=3)
        assert monotonic() - start < 5


LEAVES = """
import threading
from netloader.io import ServerOptions, serve
from netloader.io.store import digests
from tests.unit.io import test_server

digests.ALGORITHMS[test_server.ALGORITHM] = test_server.SlowHasher
server = serve(test_server.large(1), {}, options=ServerOptions(segment_bytes=1 << 20))
assert test_server.hashing.wait(30)
"""


def test_a_process_that_ends_does_not_wait_for_the_digests() -> None:
    start = monotonic()
    subprocess.run([sys.executable, "-c", LEAVES], check=True, timeout=60)
    imports = monotonic()
    subprocess.run([sys.executable, "-c", LEAVES.rpartition("digests.A")[0]], check=True)

    assert imports - start < monotonic() - imports + 5


# -- places --------------------------------------------------------------------------------------


def test_no_more_clients_than_places_and_the_rest_are_told_when_to_come_again() -> None:
    with (
        serving(zoo(1), max_clients=2) as server,
        Peer.call(server.endpoint) as one,
        Peer.call(server.endpoint) as two,
        Peer.call(server.endpoint) as three,
    ):
        one.offered()
        two.offered()
        three.say(hello())
        answer = three.hear()

    assert isinstance(answer, Reject)
    assert (answer.reason, answer.detail) == ("busy", "all 2 places are taken")
    assert answer.retry_after_s > 0


@pytest.mark.parametrize("how", ["close", "reject", "wrong request"])
def test_a_client_that_leaves_gives_its_place_to_the_next(how: str) -> None:
    with serving(zoo(1), max_clients=1) as server:
        peer = Peer.call(server.endpoint)
        peer.offered()
        match how:
            case "reject":
                peer.say(Reject("stopped"))
            case "wrong request":
                peer.answered()
                peer.say(Request((99_999,)))
            case _:
                peer.sock.close()

        assert eventually(lambda: fill(zoo(2), [server.endpoint], IDENTITY, asking()).ok)
        peer.sock.close()


def test_clients_that_reset_after_their_hello_keep_no_place() -> None:
    # The reset may come between the hello and the offer, when the server does not listen but send.
    with serving(zoo(1), max_clients=1) as server:
        for _ in range(30):
            with Peer.call(server.endpoint) as peer:
                peer.say(hello())
                reset(peer.sock)
            assert eventually(lambda: fill(zoo(2), [server.endpoint], IDENTITY, asking()).ok, 8)


def test_a_client_that_falls_silent_after_the_offer_keeps_its_place_only_until_the_deadline() -> (
    None
):
    hurried = replace(FAST, validate_s=1)
    with (
        serving(zoo(1), max_clients=1, deadlines=hurried) as server,
        Peer.call(server.endpoint) as peer,
    ):
        peer.offered()
        answer = peer.hear()
        assert isinstance(answer, Reject)
        assert (answer.reason, answer.detail) == ("deadline_passed", "in validate")
        assert eventually(lambda: fill(zoo(2), [server.endpoint], IDENTITY, asking()).ok)


def test_a_client_that_asks_for_nothing_gets_the_last_word_too() -> None:
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        offer = peer.offered()
        with Peer.call(server.endpoint) as lane:
            lane.say(Lane(offer.session, 0))
            peer.answered()
            peer.say(Request((), 1))
            assert [peer.hear(), peer.hear()] == [Begin(), Complete(0)]
            peer.say(Verified(0, 0, root_digest(offer.segment_digests)))
            assert peer.hear() is None


def test_a_client_that_verified_something_else_is_told_so(captured: Lines) -> None:
    with serving(zoo(1)) as server, Peer.call(server.endpoint) as peer:
        offer = peer.offered()
        with Peer.call(server.endpoint) as lane:
            lane.say(Lane(offer.session, 0))
            peer.answered()
            peer.say(Request((), 1))
            assert [peer.hear(), peer.hear()] == [Begin(), Complete(0)]
            peer.say(Verified(7, 7, "0" * 64))
            answer = peer.hear()

    assert isinstance(answer, Reject)
    assert answer.reason == "disagreement"
    closed = [line for line in captured if line["event"] == "netloader.session.closed"]
    assert [line["netloader.reason"] for line in closed] == ["disagreement"]


@pytest.mark.parametrize("near", ["127.0.0.1:{}", "[::1]:{}", "localhost:{}"])
def test_an_empty_host_is_every_address_of_both_kinds(near: str) -> None:
    source, target = zoo(1), zoo(2)
    with serve(source, IDENTITY, host="") as server:
        assert fill(target, [near.format(server.endpoint.port)], IDENTITY).ok
    assert contents(target) == contents(source)
