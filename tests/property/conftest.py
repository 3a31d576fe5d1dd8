"""Figures that the searches find out; they stand at the end of the test run."""

import pytest

FIGURES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin an empty list."""
    config.stash[FIGURES] = []


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> list[str]:
    """Lines to show when all tests have run."""
    return request.config.stash[FIGURES]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show them."""
    if lines := config.stash[FIGURES]:
        terminalreporter.section("figures of the searches")
        for line in lines:
            terminalreporter.write_line(line)
