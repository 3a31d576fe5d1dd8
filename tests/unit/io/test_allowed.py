"""Peers outside the allowed networks get nothing, in few log lines; the others notice nothing."""

from typing import Any

import pytest

from netloader.config import Endpoint
from netloader.io import ServerOptions
from netloader.io.allowed import Allowed
from netloader.io.seldom import EVERY_S
from netloader.log import capture, get_logger
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import IDENTITY, Peer, asking, serving, zoo

REFUSED = "netloader.listener.refused"


def told(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == REFUSED]


@pytest.mark.usefixtures("driver")
def test_a_peer_outside_is_closed_before_anything_is_read_and_named_once() -> None:
    with capture() as lines, serving(zoo(1), allow=("10.0.0.0/8", "fd00::/8")) as server:
        for _ in range(5):
            with Peer.call(server.endpoint) as peer:
                assert peer.hear() is None
        assert not fill(zoo(2), [server.endpoint], IDENTITY, asking()).ok
        assert [model.clients for model in server.snapshot().models] == [0]
    assert [line["network.peer.address"] for line in told(lines)] == ["127.0.0.1"]
    assert "ALLOW" in told(lines)[0]["netloader.remedy"]
    ours = [line for line in lines if line.get("netloader.side") == "server"]
    assert ours == []  # no session came to be


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_peer_inside_is_served_also_where_the_socket_takes_both_families(host: str) -> None:
    with serving(zoo(1), host=host, allow=("192.168.0.0/16", "127.0.0.0/8")) as server:
        here = Endpoint("127.0.0.1", server.endpoint.port)
        assert fill(zoo(2), [here], IDENTITY, asking()).ok


@pytest.mark.parametrize(
    ("network", "host", "inside"),
    [
        ("10.1.0.0/16", "10.1.255.255", True),
        ("10.1.0.0/16", "10.2.0.0", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.4", False),
        ("fd00::/8", "fd12::1", True),
        ("fe80::/10", "fe80::1%eth0", True),
        ("0.0.0.0/0", "::1", False),
        ("::/0", "10.1.2.3", False),
    ],
)
def test_a_network_has_the_addresses_of_its_own_family(
    network: str, host: str, inside: bool
) -> None:
    allowed = Allowed((network,), get_logger("server"))
    assert allowed.permits(Endpoint(host, 7), 0.0) is inside


def test_a_flood_is_counted_and_not_listed() -> None:
    with capture() as lines:
        allowed = Allowed(("10.0.0.0/8",), get_logger("server"))
        for i in range(1000):
            assert not allowed.permits(Endpoint("192.0.2.1", 1 + i), i * EVERY_S / 1000)
        assert not allowed.permits(Endpoint("192.0.2.9", 7), EVERY_S)
    first, second = told(lines)
    assert (first["network.peer.port"], first["netloader.connections"]) == (1, 1)
    assert (second["network.peer.address"], second["netloader.connections"]) == ("192.0.2.9", 1000)


@pytest.mark.parametrize(
    ("allow", "problem"),
    [
        (("10.0.0.0/8", "10.0.0.1/8"), r"allow\[1\]: '10.0.0.1/8' .* write 10.0.0.0/8"),
        (("node-a",), r"allow\[0\]: 'node-a' is no network; write a network such as 10.1.0.0/16"),
        (("",), r"allow\[0\]: '' is no network"),
    ],
)
def test_what_is_no_network_is_refused_with_what_to_write(
    allow: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        ServerOptions(allow=allow)
