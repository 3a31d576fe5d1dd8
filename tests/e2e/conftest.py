"""One fork_server for all engine tests of a run, and the table of what they compared."""

from collections.abc import Iterator

import pytest

from netloader.vllm_plugin.inspect.parity.rows import Row, table
from tests.e2e.engines import ForkServer

ROWS = pytest.StashKey[list[Row]]()


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """A process that has imported vLLM and forks engines."""
    fork_server = ForkServer(tmp_path_factory.mktemp("engines"))
    yield fork_server
    fork_server.close()


def pytest_configure(config: pytest.Config) -> None:
    """Begin an empty table."""
    config.stash[ROWS] = []


@pytest.fixture
def table_rows(request: pytest.FixtureRequest) -> list[Row]:
    """Rows to show when all tests have run."""
    return request.config.stash[ROWS]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show them."""
    if rows := config.stash[ROWS]:
        terminalreporter.section("the zoo")
        terminalreporter.write_line(table(rows))
