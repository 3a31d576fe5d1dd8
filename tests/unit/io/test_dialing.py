"""A name with several addresses: each is tried within one deadline, and lanes follow the first."""

import contextlib
import os
import socket
import threading
from dataclasses import replace
from typing import Any

import pytest

from netloader.config import Endpoint
from netloader.fsm.identity import Identity
from netloader.fsm.reasons import Reason
from netloader.io import fill
from netloader.io.clock import monotonic
from netloader.io.describe import describe
from netloader.io.dialing import NEXT_AFTER_S, connect, resolve
from netloader.io.listener import bind
from tests.support.sockets import blackhole
from tests.unit.io.helpers import FAST, IDENTITY, SOON_S, asking, contents, serving, zoo

LOOPBACK = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
NAME = "many.example"


def name_of(monkeypatch: pytest.MonkeyPatch, *answers: tuple[str, ...]) -> None:
    """Let NAME have some addresses: those of the first answer, then of the next, then the last."""
    real, left = socket.getaddrinfo, list(answers)

    def lookup(host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        if host != NAME:
            return real(host, port, *args, **options)
        hosts = left.pop(0) if len(left) > 1 else left[0]
        return [found for h in hosts for found in real(h, port, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


@pytest.mark.parametrize("swallowing", [1, 2])
@pytest.mark.parametrize("transport", ["tcp", "gloo"])
def test_an_address_that_swallows_packets_costs_a_moment_not_the_deadline(
    monkeypatch: pytest.MonkeyPatch, swallowing: int, transport: str
) -> None:
    hosts = LOOPBACK[1 : swallowing + 1]
    target, name = zoo(2), ""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(zoo(1)))
        port = server.endpoint.port
        for host in hosts:
            stack.enter_context(blackhole(host, port))
        name_of(monkeypatch, (*hosts, "127.0.0.1"))
        name = f"{NAME}:{port}"
        begun = monotonic()
        outcome = fill(target, [name], IDENTITY, asking(transport))
        assert describe([Endpoint.parse(name)], Identity({}), asking()).description is not None

    assert outcome.ok, outcome.history()
    assert contents(target) == contents(zoo(1))
    assert swallowing * NEXT_AFTER_S * 0.9 < monotonic() - begun < FAST.handshake_s


def test_with_little_time_every_address_is_still_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    hurried = replace(FAST, connect_s=0.6)
    with serving(zoo(1)) as server, contextlib.ExitStack() as stack:
        port = server.endpoint.port
        for host in LOOPBACK[1:]:
            stack.enter_context(blackhole(host, port))
        name_of(monkeypatch, (*LOOPBACK[1:], "127.0.0.1"))
        assert fill(zoo(2), [f"{NAME}:{port}"], IDENTITY, asking(deadlines=hurried)).ok


def test_an_address_that_refuses_is_followed_by_the_next_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = tuple(f"127.0.1.{n}" for n in range(1, 101))  # 100 quarters of a second are too long
    name_of(monkeypatch, (*hosts, "127.0.0.1"))
    with serving(zoo(1)) as server:
        begun = monotonic()
        assert fill(zoo(2), [f"{NAME}:{server.endpoint.port}"], IDENTITY, asking()).ok
    assert monotonic() - begun < SOON_S


def test_when_nothing_answers_the_deadline_is_for_all_addresses_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with blackhole("127.0.0.2") as first, blackhole("127.0.0.3", first.port):
        name_of(monkeypatch, LOOPBACK)
        begun = monotonic()
        hurried = asking(deadlines=replace(FAST, connect_s=1.0))
        (attempt,) = fill(zoo(2), [f"{NAME}:{first.port}"], IDENTITY, hurried).attempts

    assert attempt.reason is Reason.UNREACHABLE
    assert 0.9 < monotonic() - begun < SOON_S


def test_every_kind_of_failure_is_named_once() -> None:
    with bind("127.0.0.1", 0) as closed:
        port = closed.getsockname()[1]
    refused = [(socket.AF_INET, (host, port)) for host in LOOPBACK]
    no_route = (socket.AF_INET6, ("fe80::1%lo", port, 0, 4242))  # an interface that is not there
    with pytest.raises(OSError, match=r"^\[Errno \d+\] Connection refused, [A-Z][a-z ]+$"):
        connect([*refused, no_route], SOON_S)


def test_attempts_that_were_not_taken_are_closed() -> None:
    def open_sockets() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count

    with blackhole("127.0.0.2") as hole, bind("127.0.0.1", 0) as good:
        addresses = [(socket.AF_INET, (hole.host, hole.port)), (socket.AF_INET, good.getsockname())]
        before = open_sockets()
        with connect(addresses, SOON_S) as connection:
            assert connection.getpeername() == good.getsockname()
            assert open_sockets() == before + 1
        with pytest.raises(TimeoutError):
            connect(addresses[:1], 0.3)
        assert open_sockets() == before


def test_the_families_of_a_name_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    name_of(monkeypatch, ("::1", "::2", "::3", "127.0.0.1", "127.0.0.1", "127.0.0.2"))
    hosts = [address[0] for _, address in resolve(Endpoint(NAME, 1))]
    assert hosts == ["::1", "127.0.0.1", "::2", "127.0.0.2", "::3"]


@pytest.mark.parametrize("transport", ["tcp", "gloo"])
def test_lanes_go_to_the_address_that_the_control_connection_reached(
    monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    # A name that stands for two servers, whose order changes with every look-up.
    with serving(zoo(1)) as first, contextlib.ExitStack() as stack:
        port = first.endpoint.port
        other = stack.enter_context(bind("127.0.0.2", port))
        other.settimeout(0.2)
        name_of(monkeypatch, ("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1"))
        target = zoo(2)
        assert fill(target, [f"{NAME}:{port}"], IDENTITY, asking(transport, lanes=3)).ok
        assert contents(target) == contents(zoo(1))
        with pytest.raises(TimeoutError):
            other.accept()


def test_a_name_look_up_that_hangs_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(*_: Any, **__: Any) -> list[Any]:
        over.wait(SOON_S)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    begun = monotonic()
    hurried = asking(deadlines=replace(FAST, connect_s=0.5))
    (attempt,) = fill(zoo(2), [f"{NAME}:1"], IDENTITY, hurried).attempts
    took = monotonic() - begun
    over.set()

    assert attempt.reason is Reason.UNREACHABLE
    assert took < SOON_S / 2
