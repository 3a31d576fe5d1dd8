"""A server and a client on two hosts: the cable is pulled, packets are lost, ports are closed.

A host is a network namespace. The client finds a spare server on its own host, so it can finish
when the other host is gone.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from netloader.config import Deadlines, Endpoint
from netloader.io.clock import monotonic
from tests.support.hosts import Host, missing, two_hosts
from tests.support.peers import Halt, Peer, Spec, Words, act_as_client, serving, with_chances

pytestmark = pytest.mark.timeout(120)

TRANSPORTS = pytest.mark.parametrize("transport", ["tcp", "gloo"])
QUICK = Deadlines(
    connect_s=2, handshake_s=2, validate_s=3, stall_s=2, transfer_base_s=30, queue_s=0
)
ROOM_S = 6.0
"""What two busy cores may add to a deadline, with the second that a settled link lingers."""
ESTABLISHED = "01"


class Site:
    """A server alone on its host, and on the other host a spare one and room for clients."""

    def __init__(self, stack: ExitStack, transport: str) -> None:
        self._stack = stack
        self.far, self.near = stack.enter_context(two_hosts())
        self.spec = Spec(deadlines=QUICK, transports=(transport,), max_clients=1)
        self.server, words = self._serve(self.far, self.far.address)
        self.endpoint: str = words["endpoint"]
        self.digest: str = words["digest"]

    def _serve(self, host: Host, address: str) -> tuple[Peer, Words]:
        spec = replace(self.spec, network=host.network, host=address)
        peer, words = serving(spec)
        return self._stack.enter_context(peer), words

    def spare(self) -> str:
        """One more server, on the clients' own host."""
        return str(self._serve(self.near, "127.0.0.1")[1]["endpoint"])

    def client(self, *sources: str, halt: Halt | None = None, mib: int = 64) -> Peer:
        """A client on the near host."""
        spec = replace(self.spec, mib=mib, sources=with_chances(sources), halt=halt)
        at = replace(spec, network=self.near.network)
        return self._stack.enter_context(Peer(act_as_client, at))

    def plug(self) -> None:
        """Put the cable back."""
        self.far.plug()
        self.far.wait_for_link()
        self.near.wait_for_link()

    def pull_cable_under(self, client: Peer) -> tuple[float, Words]:
        """Pull the cable when a client has halted: when, and how it then ends, with every byte."""
        client.reached()
        self.far.unplug()
        pulled = monotonic()
        client.tell("go on")
        outcome = client.hear()
        assert outcome["ok"], outcome["attempts"]
        assert outcome["digest"] == self.digest
        return pulled, outcome

    def assert_served(self) -> None:
        """A client gets everything from the far server."""
        outcome = self.client(self.endpoint).hear()
        assert outcome["ok"], outcome["attempts"]
        assert outcome["digest"] == self.digest

    def assert_free(self, calm: Words, since: float, deadline_s: float) -> None:
        """The far server gives up within its deadline, and then holds what it held before."""
        old = len(calm["closed"])
        end = self.server.becomes(
            lambda now: (
                len(now["closed"]) > old
                and now["threads"] <= calm["threads"]
                and now["files"] <= calm["files"]
            )
        )
        took = end["closed"][old]["at"] - since
        print(f"server free {took:.1f} s after the cable was pulled, deadline {deadline_s} s")
        assert took < deadline_s + ROOM_S
        assert not end["errors"]


@pytest.fixture(scope="module", autouse=True)
def _hosts_can_be_had() -> None:
    if why_not := missing():
        pytest.skip(f"two hosts: {why_not}")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@TRANSPORTS
def test_a_cable_pulled_in_the_transfer_costs_the_stall_deadline_on_both_hosts(
    stack: ExitStack, transport: str
) -> None:
    site = Site(stack, transport)
    site.assert_served()
    calm = site.server.becomes(lambda now: now["closed"])
    client = site.client(site.endpoint, site.spare(), halt=Halt("wait", share=0.25))
    pulled, outcome = site.pull_cable_under(client)

    broken, *others = outcome["attempts"]
    assert broken["reason"] == "transfer_stalled"
    assert 0 < broken["nbytes"] < outcome["nbytes"]
    assert sum(other["nbytes"] for other in others) == outcome["nbytes"] - broken["nbytes"]
    assert outcome["tried"][1] - pulled < QUICK.stall_s + ROOM_S
    site.assert_free(calm, pulled, QUICK.stall_s)
    site.plug()
    site.assert_served()


@TRANSPORTS
@pytest.mark.parametrize("state", ["handshake", "validate"])
def test_a_cable_pulled_before_the_transfer_costs_the_deadline_of_the_phase(
    stack: ExitStack, transport: str, state: str
) -> None:
    site = Site(stack, transport)
    site.assert_served()
    calm = site.server.becomes(lambda now: now["closed"])
    client = site.client(site.endpoint, site.spare(), halt=Halt("wait", state))
    pulled, outcome = site.pull_cable_under(client)

    deadline_s = {"handshake": QUICK.handshake_s, "validate": QUICK.validate_s}[state]
    assert outcome["attempts"][0]["reason"] in {"deadline_passed", "transfer_failed"}
    assert outcome["tried"][1] - pulled < deadline_s + ROOM_S
    site.assert_free(calm, pulled, deadline_s)
    site.plug()
    site.assert_served()


@TRANSPORTS
def test_a_host_that_is_not_there_costs_the_connect_deadline(
    stack: ExitStack, transport: str
) -> None:
    site = Site(stack, transport)
    site.far.unplug()
    outcome = site.client(site.endpoint, site.spare()).hear()
    assert outcome["ok"], outcome["attempts"]
    assert outcome["attempts"][0]["reason"] == "unreachable"
    first, second, *_ = outcome["tried"]
    assert second - first < QUICK.connect_s + ROOM_S
    site.plug()
    site.assert_served()


@TRANSPORTS
def test_a_link_that_delays_and_loses_packets_carries_every_byte(
    stack: ExitStack, transport: str
) -> None:
    site = Site(stack, transport)
    how = [host.impair() for host in (site.far, site.near)]
    site.assert_served()
    lost = site.far.lost()
    print(f"{transport}: {how[0]} lost {lost} packets on the way to the client")
    assert lost


def test_tcp_needs_nothing_but_the_servers_port(stack: ExitStack) -> None:
    site = Site(stack, "tcp")
    port = Endpoint.parse(site.endpoint).port
    site.far.answers_only_on(port)
    client = site.client(site.endpoint, halt=Halt("wait", share=0.25))
    client.reached()
    remote = _remote_ports(client)
    client.tell("go on")
    outcome = client.hear()
    assert outcome["ok"], outcome["attempts"]
    assert outcome["digest"] == site.digest
    assert remote == {port}


def test_gloo_needs_ports_of_its_own_and_says_so_within_its_deadlines(stack: ExitStack) -> None:
    # docs/protocol/conversation.md promises no more: gloo dials between the hosts as it likes.
    site = Site(stack, "gloo")
    site.far.answers_only_on(Endpoint.parse(site.endpoint).port)
    outcome = site.client(site.endpoint, site.spare()).hear()
    assert outcome["ok"], outcome["attempts"]
    assert outcome["digest"] == site.digest
    assert outcome["attempts"][0]["reason"] in {"transfer_stalled", "transfer_failed"}
    first, second, *_ = outcome["tried"]
    print(f"gloo, one port open: given up after {second - first:.1f} s")
    assert second - first < QUICK.stall_s + ROOM_S


def _remote_ports(client: Peer) -> set[int]:
    """The other ends of the connections of a client's host, but for loopback."""
    lines = Path(f"/proc/{client.process.pid}/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    ends = [row[2].split(":") for row in rows if row[3] == ESTABLISHED]
    return {int(port, 16) for address, port in ends if not address.endswith("7F")}
