"""The one clock."""

import time

import pytest

from netloader.io.clock import monotonic


def test_setting_the_wall_clock_does_not_move_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = monotonic()
    monkeypatch.setattr(time, "time", lambda: 0.0)

    assert before <= monotonic() < before + 60
