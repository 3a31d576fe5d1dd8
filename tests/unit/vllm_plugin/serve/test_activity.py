"""Whether an engine is busy: during its steps, and for a moment after each."""

from typing import Any

import pytest

from netloader.vllm_plugin.patches import worker_methods
from netloader.vllm_plugin.serve import activity

pytestmark = pytest.mark.usefixtures("worker_process")


class Engine:
    """A worker whose step notes whether it is busy then, and may fail."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def execute_model(self, fails: bool) -> str:
        self.seen.append(worker_methods.worker_of(self).activity.busy())
        if fails:
            raise ZeroDivisionError("the step failed")
        return "tokens"


def test_an_engine_is_busy_during_a_step_and_for_a_moment_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(activity, "monotonic", lambda: now[0])
    kind: Any = type("Worker", (Engine,), {"execute_model": Engine.execute_model})
    worker_methods.install(kind)
    worker = kind()
    busy = worker_methods.worker_of(worker).activity.busy
    assert not busy()

    assert worker.execute_model(False) == "tokens"
    now[0] += activity.BUSY_S / 2
    assert busy()
    now[0] += activity.BUSY_S
    assert not busy()
    with pytest.raises(ZeroDivisionError):
        worker.execute_model(True)
    now[0] += 2 * activity.BUSY_S

    assert not busy()
    assert worker.seen == [True, True]
