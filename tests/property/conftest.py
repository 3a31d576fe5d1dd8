"""Figures that the searches find out; they stand at the end of the test run."""

from typing import Any

import pytest

FIGURES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin an empty list."""
    config.stash[FIGURES] = []


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> list[str]:
    """Lines to show when all tests have run."""
    return request.config.stash[FIGURES]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send them home, from a process of pytest-xdist."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["figures"] = session.config.stash[FIGURES]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take them in there."""
    node.config.stash[FIGURES].extend(getattr(node, "workeroutput", {}).get("figures", ()))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show them."""
    if lines := config.stash[FIGURES]:
        terminalreporter.section("figures of the searches")
        for line in lines:
            terminalreporter.write_line(line)
