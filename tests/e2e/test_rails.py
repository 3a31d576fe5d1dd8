"""Two hosts with two cables: what both carry together, and what a cut one costs.

Each cable carries 160 Mbit/s at most, so two busy cores are far from being the limit.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from netloader.config import Deadlines, Endpoint
from tests.support.hosts import Host, missing, two_cables
from tests.support.peers import Peer, Spec, Words, act_as_client, serving

pytestmark = pytest.mark.timeout(120)

RATE = "160mbit"
MIB = 32
SHARE = 0.75
"""Of twice the rate of one cable: other processes of this machine may delay either load."""
PATIENT = Deadlines(min_rate_bytes_per_s=1 << 20)


class Site:
    """A server on one host, which listens at both its addresses, and clients on the other."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.cables: tuple[tuple[Host, Host], ...] = stack.enter_context(two_cables())
        for near, _ in self.cables:
            near.limit(RATE)
        self.rails = tuple(near.address for near, _ in self.cables)
        host = self.cables[0][0]
        self._spec = Spec(network=host.network, mib=MIB, deadlines=PATIENT, lanes=2)
        server, words = serving(replace(self._spec, host="0.0.0.0", rails=self.rails))
        stack.enter_context(server)
        port = Endpoint.parse(words["endpoint"]).port
        self._source = str(Endpoint(self.rails[0], port))
        self._digest: str = words["digest"]

    def sent(self) -> list[int]:
        """Bytes that the server's host has sent over each cable."""
        return [near.sent() for near, _ in self.cables]

    def load(self) -> Words:
        """What became of a client with rails of its own."""
        rails = tuple(far.address for _, far in self.cables)
        network = self.cables[0][1].network
        spec = replace(self._spec, network=network, sources=(self._source,), rails=rails)
        outcome = self._stack.enter_context(Peer(act_as_client, spec)).hear()
        assert outcome["ok"], outcome["attempts"]
        assert outcome["digest"] == self._digest
        assert len(outcome["attempts"]) == 1
        return outcome


@pytest.fixture
def site() -> Iterator[Site]:
    if why_not := missing():
        pytest.skip(f"two hosts: {why_not}")
    with ExitStack() as stack:
        yield Site(stack)


def seconds(outcome: Words) -> float:
    """How long the bytes were on their way."""
    spent: float = outcome["attempts"][0]["seconds"]["transfer"]
    return spent


def test_two_rails_carry_nearly_twice_what_one_does(site: Site) -> None:
    before = site.sent()
    both = seconds(site.load())
    carried = [after - was for after, was in zip(site.sent(), before, strict=True)]
    site.cables[1][1].unplug()

    one = seconds(site.load())

    print(f"one rail {one:.2f} s, two rails {both:.2f} s: {one / both / 2:.2f} of the sum")
    assert min(carried) > 0.4 * sum(carried)
    assert one / both > 2 * SHARE


def test_a_rail_that_is_cut_before_a_load_is_left_out(site: Site) -> None:
    site.cables[1][0].unplug()
    before = site.sent()

    site.load()

    assert site.sent()[0] - before[0] > MIB << 20
