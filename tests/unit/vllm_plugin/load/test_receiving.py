"""How a rank receives."""

import os

import pytest

from netloader.io import ClientOptions
from netloader.log import get_logger
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.identity.identity import RAW
from netloader.vllm_plugin.load.receiving import options_of


@pytest.mark.parametrize(("usable", "lanes"), [({3}, 1), ({0, 3}, 2), ({*range(64)}, 2)])
def test_a_rank_and_a_library_client_open_as_many_lanes_as_cores_allow(
    monkeypatch: pytest.MonkeyPatch, usable: set[int], lanes: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: usable)
    absent, given = (Settings.parse(extra) for extra in ({}, {"LANES": 5}))

    assert ClientOptions().lanes == lanes
    assert options_of(absent, RAW, get_logger("client")).lanes == lanes
    assert options_of(given, RAW, get_logger("client")).lanes == 5
