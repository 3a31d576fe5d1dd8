"""What a worker of vLLM says of its weights when an instance on standby is asked, or filled."""

from pathlib import Path
from typing import Any

import pytest
from vllm.config.load import LoadConfig

from netloader.vllm_plugin.patches import worker_methods
from netloader.vllm_plugin.serve.worker import this_worker

pytestmark = pytest.mark.usefixtures("worker_process")

QUESTIONS = ("netloader_standing", "netloader_fill")


def worker_of(load_format: str = "netloader", **extra: Any) -> Any:
    """The worker of rank 3, with these settings, that holds no model on standby."""
    kind: Any = type("Worker", (), {})
    worker_methods.install(kind)
    worker = kind()
    worker.rank = 3
    worker.load_config = LoadConfig(load_format=load_format, model_loader_extra_config=extra)
    return worker


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(("load_format", "extra"), [("netloader", {}), ("auto", {"STANDBY": True})])
def test_a_rank_that_does_not_start_on_standby_has_its_weights(
    question: str, load_format: str, extra: dict[str, Any]
) -> None:
    report = getattr(worker_of(load_format, **extra), question)()
    assert (report["rank"], report["filled"]) == (3, True)
    assert "not started with STANDBY" in report["why"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_rank_that_should_wait_and_does_not_counts_as_not_filled(
    question: str, tmp_path: Path
) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"STANDBY": true}')
    for worker in (worker_of(STANDBY=True), worker_of(CONFIG_FILE=str(path))):
        report = getattr(worker, question)()
        assert (report["rank"], report["filled"]) == (3, False)
        assert "restart this instance" in report["why"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_rank_that_cannot_tell_whether_it_should_wait_counts_as_not_filled(question: str) -> None:
    report = getattr(worker_of(CONFIG_FILE="/nowhere/settings.json"), question)()
    assert not report["filled"]
    assert "CONFIG_FILE" in report["why"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_rank_that_waits_answers_itself(question: str) -> None:
    class Waiting:
        def status(self) -> Any:
            return {"rank": 3, "filled": True}

        def fill(self, reload: Any, sources: Any) -> Any:
            return self.status()

    worker = worker_of(STANDBY=True)
    worker.reload_weights = lambda: None
    this_worker().standby = Waiting()  # type: ignore[assignment]
    assert getattr(worker, question)() == {"rank": 3, "filled": True}
