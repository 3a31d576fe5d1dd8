"""Small fleets, simulated: what a person can compute must come out."""

from dataclasses import replace

import pytest

from benchmarks.simulation import Setting, simulate

ONE = Setting(1, segments=32, segment_bytes=1 << 20, rate=1e8, message_s=0.0001, spread_s=0.005)
ALONE = simulate(ONE).all_done


def times_one(setting: Setting) -> float:
    return simulate(setting).all_done / ALONE


def test_one_instance_takes_the_time_of_its_bytes() -> None:
    assert pytest.approx(32 * (1 << 20) / 1e8, rel=0.05) == ALONE


def test_in_a_star_the_time_grows_with_the_instances() -> None:
    star = replace(ONE, instances=6, relay=False, places=6)

    assert times_one(star) == pytest.approx(6, rel=0.1)
    assert simulate(star).sent_by_source == 6


def test_a_chain_ends_one_segment_later_with_each_instance() -> None:
    outcome = simulate(replace(ONE, instances=9))

    assert outcome.all_done / ALONE == pytest.approx(1 + 8 / 32, abs=0.1)
    assert outcome.sent_by_source == 1
    assert outcome.sent.count(outcome.total) == 9, "each but the last sends the model once"


def test_more_instances_than_a_client_takes_up_at_once_form_one_chain() -> None:
    """With busy sources counted against the 64, the rest waited until instances were done."""
    many = simulate(replace(ONE, instances=90, segments=16, spread_s=0.001))

    alone = simulate(replace(ONE, segments=16)).all_done
    assert many.all_done / alone < 1.3 * (1 + 89 / 16)
    assert many.sent_by_source <= 2


def test_an_uplink_that_racks_share_is_what_limits_them() -> None:
    racks = replace(ONE, instances=12, rack=6, uplink=ONE.rate / 4, mixed=False)

    assert times_one(racks) == pytest.approx(4, rel=0.3)


def test_the_same_setting_gives_the_same_figures() -> None:
    fleet = replace(ONE, instances=7, places=2, parallel=2)

    assert simulate(fleet) == simulate(fleet)
