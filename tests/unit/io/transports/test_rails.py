"""Lanes over the addresses that both hosts are given; one that cannot be used is left out."""

import socket
from contextlib import closing

import pytest

from netloader.config import Endpoint
from netloader.io import ClientOptions, ServerOptions, fill, serve
from netloader.io.clock import monotonic
from netloader.io.dialing import RAIL_S, Dialer
from netloader.io.listener import bind
from netloader.io.transports import tcp
from netloader.io.transports.base import ReceiverSetup
from netloader.io.transports.lanes import set_stall
from netloader.io.transports.rails import Rails, heard, told
from tests.support.sockets import blackhole
from tests.unit.io.helpers import FAST, IDENTITY, SOON_S, contents, sealed, zoo

HERE = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


def setup_of(broken: tuple[str, ...], rails: tuple[str, ...], dialled: list[str]) -> ReceiverSetup:
    def dial(index: int) -> socket.socket:
        dialled.append(f"{index} plain")
        return socket.socket()

    def dial_rail(index: int, to: str, source: str) -> socket.socket:
        dialled.append(f"{index} {to} from {source}")
        if to in broken:
            raise ConnectionRefusedError
        return socket.socket()

    lease = None
    return ReceiverSetup(lease, "session", SOON_S, dial, 4, dial_rail, rails)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("remote", "local", "dialled"),
    [
        ((), (), ["0 plain", "1 plain", "2 plain"]),
        (("a", "b"), (), ["0 a from ", "1 b from ", "2 a from "]),
        ((), ("x", "y"), ["0  from x", "1  from y", "2  from x"]),
        (("a", "b"), ("x", "y"), ["0 a from x", "1 b from y", "2 a from x"]),
        (("a", "b"), ("x",), ["0 a from x", "1 b from x", "2 a from x"]),
        (("a",), ("x", "y", "z"), ["0 a from x", "1 a from y", "2 a from z"]),
    ],
)
def test_lanes_go_from_one_rail_to_the_next(
    remote: tuple[str, ...], local: tuple[str, ...], dialled: list[str]
) -> None:
    done: list[str] = []
    rails = Rails(setup_of((), local, done), remote)

    for index in range(3):
        rails.dial(index).close()

    assert done == dialled


def test_a_rail_that_fails_is_tried_once() -> None:
    done: list[str] = []
    rails = Rails(setup_of(("b",), (), done), ("a", "b"))

    for index in range(4):
        rails.dial(index).close()

    assert done == ["0 a from ", "1 b from ", "1 plain", "2 a from ", "3 plain"]


def test_what_a_server_says_is_read_with_caution() -> None:
    assert heard(told(("10.0.0.1", "fd00::1"))) == ("10.0.0.1", "fd00::1")
    assert told(()) == {}
    assert heard({}) == heard({"addresses": " "}) == ()
    assert heard({"addresses": "localhost 10.0.0.1 ; 10.0.0.1:80 [::1]"}) == ("10.0.0.1",)
    assert len(heard({"addresses": "10.0.0.1 " * 1000})) == 16


def test_a_rail_is_dialled_from_the_address_that_is_wanted() -> None:
    with closing(bind("", 0)) as listening:
        dialer = Dialer(Endpoint("127.0.0.1", listening.getsockname()[1]), SOON_S)
        with dialer.dial(), dialer.dial_rail("127.0.0.2", "127.0.0.3") as lane:
            assert lane.getpeername()[0] == "127.0.0.2"
            assert lane.getsockname()[0] == "127.0.0.3"
        with dialer.dial_rail("", "127.0.0.3") as lane:
            assert lane.getpeername()[0] == "127.0.0.1"
        for to, source in (("127.0.0.2", "192.0.2.1"), ("127.0.0.2", "::1"), ("::1", "127.0.0.1")):
            with pytest.raises(OSError, match=r".+"):
                dialer.dial_rail(to, source)


def test_a_silent_rail_costs_a_second() -> None:
    with blackhole("127.0.0.2") as silent:
        dialer = Dialer(Endpoint("127.0.0.1", silent.port), SOON_S)
        begun = monotonic()
        with pytest.raises(TimeoutError):
            dialer.dial_rail("127.0.0.2", "")

    assert monotonic() - begun < RAIL_S + 2.0


def lanes_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Where lanes go, and where from, from now on."""
    seen: list[tuple[str, str]] = []

    def noted(lane: socket.socket, stall_s: float) -> None:
        seen.append((lane.getpeername()[0], lane.getsockname()[0]))
        set_stall(lane, stall_s)

    monkeypatch.setattr(tcp, "set_stall", noted)
    return seen


def test_the_lanes_of_a_fill_use_every_rail_of_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, target = lanes_of(monkeypatch), zoo(2)
    options = ServerOptions(rails=HERE[1:], deadlines=FAST)
    with sealed(serve(zoo(1), IDENTITY, "0.0.0.0", options=options)) as server:
        source = Endpoint("127.0.0.1", server.endpoint.port)
        wanted = ClientOptions(transports=("tcp",), deadlines=FAST, rails=HERE[1:], lanes=1)
        outcome = fill(target, [source], IDENTITY, wanted)

    assert outcome.ok, outcome.history()
    assert contents(target) == contents(zoo(1))
    assert {("127.0.0.2", "127.0.0.2"), ("127.0.0.3", "127.0.0.3")} <= {*seen}


def test_rails_that_lead_nowhere_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, target = lanes_of(monkeypatch), zoo(2)
    options = ServerOptions(rails=("192.0.2.1", "127.0.0.2"), deadlines=FAST)
    with sealed(serve(zoo(1), IDENTITY, "0.0.0.0", options=options)) as server:
        source = Endpoint("127.0.0.1", server.endpoint.port)
        wanted = ClientOptions(transports=("tcp",), deadlines=FAST, lanes=4)
        outcome = fill(target, [source], IDENTITY, wanted)

    assert outcome.ok, outcome.history()
    assert len(outcome.attempts) == 1
    assert {to for to, source in seen if source == "127.0.0.1"} >= {"127.0.0.1"}


def test_rails_of_a_server_that_listens_at_one_address_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rails are given, but the host is '127\.0\.0\.1'; give"):
        serve(zoo(1), IDENTITY, "127.0.0.1", options=ServerOptions(rails=HERE[:1]))
