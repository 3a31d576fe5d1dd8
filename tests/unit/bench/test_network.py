"""The simulated network: who gets how much of a link, and when bytes arrive."""

from functools import partial

import pytest

from benchmarks.network import Clock, Flow, Link, Network, fair


def flow(*links: Link) -> Flow:
    made = Flow(links, [1], lambda: None)
    for link in links:
        link.flows.add(made)
    return made


def test_flows_of_one_link_have_equal_shares() -> None:
    link = Link(12.0)
    flows = [flow(link) for _ in range(4)]

    assert fair(flows) == dict.fromkeys(flows, 3.0)


def test_what_a_flow_cannot_use_is_shared_by_the_others() -> None:
    wide, narrow = Link(12.0), Link(2.0)
    limited, one, other = flow(wide, narrow), flow(wide), flow(wide)

    assert fair([limited, one, other]) == {limited: 2.0, one: 5.0, other: 5.0}


@pytest.mark.parametrize("quantum_s", [0.0, 0.5])
def test_a_flow_speeds_up_when_another_one_ends(quantum_s: float) -> None:
    clock, link, times = Clock(), Link(10.0), dict[str, float]()
    network = Network(clock, quantum_s)

    def arrive(name: str) -> None:
        times[name] = clock.now

    for name, nbytes in (("short", 10), ("long", 30)):
        network.start(Flow((link,), [nbytes], partial(arrive, name)))

    clock.run(lambda: False)

    assert times["short"] == pytest.approx(2.0, abs=quantum_s)
    assert times["long"] == pytest.approx(4.0, abs=2 * quantum_s)
    assert link.carried == 40


def test_parcels_of_one_flow_follow_each_other_without_a_pause() -> None:
    clock, arrivals = Clock(), list[float]()
    flow = Flow((Link(10.0),), [10, 20], lambda: arrivals.append(clock.now))

    Network(clock).start(flow)
    clock.run(lambda: False)

    assert arrivals == [2.0, 3.0]


def test_a_flow_that_is_stopped_brings_nothing_more() -> None:
    clock, link, arrivals = Clock(), Link(10.0), list[float]()
    network = Network(clock)
    stopped = Flow((link,), [10], lambda: arrivals.append(-1.0))
    other = Flow((link,), [10], lambda: arrivals.append(clock.now))
    network.start(stopped)
    network.start(other)
    clock.after(1.0, lambda: network.stop(stopped))

    clock.run(lambda: False)

    assert arrivals == [1.5]
