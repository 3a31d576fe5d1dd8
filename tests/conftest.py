"""What all tests share: how long Hypothesis searches, and the log as a list."""

import os
import sys
import threading
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import Phase, settings

from netloader.log import capture

# Helpers with asserts of their own: pytest shows what they compared.
pytest.register_assert_rewrite("tests.unit.io.sites", "tests.unit.io.workers")

# No profile has a deadline per example: two shared cores make wall-clock limits flaky.
settings.register_profile("dev", max_examples=100, deadline=None)
settings.register_profile("ci", settings.get_profile("ci"), max_examples=300, deadline=None)
settings.register_profile(
    "quick", settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate)
)
settings.register_profile("nightly", max_examples=5000, deadline=None, stateful_step_count=80)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.hookimpl(trylast=True)
def pytest_sessionstart() -> None:
    """Let one thread at a time install the tracer that measures coverage.

    CPython 3.11 refuses it while another thread installs one, and that other one may give up the
    interpreter lock in between: in an audit hook that is written in Python, as ours is. A worker of
    pytest-xdist has the tracer only now.
    """
    tracer, install, turn = threading.gettrace(), sys.settrace, threading.RLock()
    if tracer is None or sys.version_info >= (3, 12):
        return

    def installed(function: Any) -> None:
        with turn:
            install(function)

    def traced(*call: Any) -> Any:
        with turn:
            return tracer(*call)

    sys.settrace = installed
    threading.settrace(traced)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what UTF-8 cannot express in captured output: a worker of pytest-xdist dies of it."""
    report = yield
    report.sections = [
        (heading, text.encode(errors="backslashreplace").decode())
        for heading, text in report.sections
    ]
    return report


@pytest.fixture
def captured() -> Iterator[list[dict[str, Any]]]:
    """Every line our loggers write during the test, as dicts, at every level."""
    with capture() as lines:
        yield lines
