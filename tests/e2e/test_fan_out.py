"""Clients that start together from one server feed each other: they take about as long as one."""

import signal
from contextlib import ExitStack
from dataclasses import replace

import pytest

from tests.support.fan_out import DEADLINES, act_alone, act_as_relay, fan_out
from tests.support.hosts import missing
from tests.support.peers import Halt, Peer, Spec, serving

pytestmark = pytest.mark.timeout(180)

MIB = 64
MBIT = 160
MOST = 1.5
"""Times the time of one, for all three."""


@pytest.fixture(scope="module")
def hosts() -> None:
    if why_not := missing():
        pytest.skip(f"hosts: {why_not}")


@pytest.mark.usefixtures("hosts")
def test_three_clients_take_about_as_long_as_one() -> None:
    one, _ = fan_out(act_as_relay, 1, MIB, MBIT, max_clients=1)
    three, ended = fan_out(act_as_relay, 3, MIB, MBIT, max_clients=1)

    print(f"one {one.all_done:.2f} s, three {[round(s, 2) for s in three.seconds]} s")
    assert three.all_done < MOST * one.all_done, [end["attempts"] for end in ended]


@pytest.mark.usefixtures("hosts")
def test_with_two_places_all_three_end_through_each_other() -> None:
    three, ended = fan_out(act_as_relay, 3, MIB, MBIT, max_clients=2)

    assert three.sent_by_server < 2.5, [end["attempts"] for end in ended]


def test_a_relay_that_is_killed_costs_its_child_what_was_on_its_way() -> None:
    spec = Spec(mib=MIB, segment_mib=1, deadlines=DEADLINES, max_clients=1, lanes=1)
    with ExitStack() as stack:
        server, words = serving(spec)
        stack.enter_context(server)
        at = replace(spec, sources=(words["endpoint"],))
        relay = stack.enter_context(Peer(act_as_relay, replace(at, halt=Halt("wait", share=0.5))))
        child = stack.enter_context(Peer(act_alone, replace(at, halt=Halt("wait", share=0.25))))
        for peer in (relay, child):
            assert peer.hear()["ready"]
        relay.tell("begin")
        relay.reached()
        child.tell("begin")
        child.reached()
        relay.signal(signal.SIGKILL)
        child.tell("go on")
        outcome = child.hear()

    assert outcome["ok"], outcome["attempts"]
    assert outcome["digest"] == words["digest"]
    by_relay = [a["nbytes"] for a in outcome["attempts"] if a["source"] != words["endpoint"]]
    received = sum(a["nbytes"] for a in outcome["attempts"])
    print(f"from the relay {sum(by_relay)} bytes, {received} of {outcome['nbytes']} in all")
    assert sum(by_relay) >= outcome["nbytes"] // 4
    assert received == outcome["nbytes"], "what was verified is kept, and nothing comes twice"
