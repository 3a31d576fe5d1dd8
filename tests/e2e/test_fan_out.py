"""Clients that start together from one server feed each other: they take about as long as one."""

import pytest

from tests.support.fan_out import act_as_relay, fan_out
from tests.support.hosts import missing

pytestmark = pytest.mark.timeout(180)

MIB = 64
MBIT = 160
MOST = 1.5
"""Times the time of one, for all three."""


@pytest.fixture(scope="module", autouse=True)
def _hosts_can_be_had() -> None:
    if why_not := missing():
        pytest.skip(f"hosts: {why_not}")


def test_three_clients_take_about_as_long_as_one() -> None:
    one, _ = fan_out(act_as_relay, 1, MIB, MBIT, max_clients=1)
    three, ended = fan_out(act_as_relay, 3, MIB, MBIT, max_clients=1)

    print(f"one {one.all_done:.2f} s, three {[round(s, 2) for s in three.seconds]} s")
    assert three.all_done < MOST * one.all_done, [end["attempts"] for end in ended]


def test_with_two_places_all_three_end_through_each_other() -> None:
    three, ended = fan_out(act_as_relay, 3, MIB, MBIT, max_clients=2)

    assert three.sent_by_server < 2.5, [end["attempts"] for end in ended]
