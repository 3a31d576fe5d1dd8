"""Two sources at once are nearly twice as fast as one, where the sources are the bottleneck.

Each source is a process in a network namespace of its own, whose way out is limited to one rate.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from tests.support.hosts import arms, missing
from tests.support.peers import Peer, Spec, Words, act_as_client, serving

pytestmark = pytest.mark.timeout(240)

RATE = "160mbit"
MOST = 0.6
"""Of the time that one source needs. Half would be ideal; the rest are hands that change."""
ROUNDS = 2


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def test_two_sources_of_one_rate_need_at_most_six_tenths_of_the_time_of_one(
    stack: ExitStack,
) -> None:
    if why_not := missing():
        pytest.skip(f"two hosts: {why_not}")
    network, hosts = stack.enter_context(arms(2))
    spec = Spec(mib=128, segment_mib=1, lanes=1)
    served: list[Words] = []
    for host in hosts:
        host.limit(RATE)
        peer, words = serving(replace(spec, network=host.network, host=host.address))
        stack.enter_context(peer)
        served.append(words)
    sources = tuple(words["endpoint"] for words in served)

    def filled(parallel: int) -> Words:
        """What a client says that asks so many of the sources at once."""
        asked = replace(spec, network=network, sources=sources[:parallel], parallel=parallel)
        with Peer(act_as_client, asked) as client:
            outcome = client.hear()
        assert outcome["ok"], outcome["attempts"]
        assert outcome["digest"] == served[0]["digest"]
        assert all(attempt["nbytes"] for attempt in outcome["attempts"])
        return outcome

    alone, together = [], []
    for _ in range(ROUNDS):  # A B A B: what else the machine does concerns both
        alone.append(filled(1)["took"])
        together.append(filled(2)["took"])

    ratio = min(together) / min(alone)
    for one, two in zip(alone, together, strict=True):
        print(f"sources of {RATE} each: one alone {one:.2f} s, two at once {two:.2f} s")
    print(f"two sources need {ratio:.2f} of the time of one")
    assert ratio <= MOST
