"""What the scenarios share. Without ASCEND_RELEASES, which `make test-ascend` sets, none run.

Every scenario runs with every release. The environment names the releases, which are folders below
.cache/ascend, and where packages are that the environment itself does not have.
"""

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.ascend.table import Table, merged

if TYPE_CHECKING:
    from tests.ascend.topology import Cast, ForkServer

RELEASES = os.environ.get("ASCEND_RELEASES", "").split()
BEHIND = os.environ.get("ASCEND_PACKAGES_BEHIND", "")
FOLDER = Path(__file__).parents[2] / ".cache" / "ascend"

if RELEASES:
    sys.path.extend(BEHIND.split(os.pathsep))
else:
    collect_ignore_glob = ["test_*.py"]

TABLE = pytest.StashKey[Table]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin the table."""
    config.stash[TABLE] = Table()


@pytest.fixture(scope="session", params=RELEASES)
def release(request: pytest.FixtureRequest) -> Path:
    """The folder of one release of vllm-ascend."""
    folder: Path = FOLDER / request.param
    return folder


@pytest.fixture(scope="session")
def fork_server(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["ForkServer"]:
    """A process of this release from which workers are forked."""
    from tests.ascend.topology import ForkServer

    folder = tmp_path_factory.mktemp("ascend")
    with closing(ForkServer(folder, release, BEHIND)) as fork_server:
        yield fork_server


@pytest.fixture
def cast(fork_server: "ForkServer", request: pytest.FixtureRequest) -> Iterator["Cast"]:
    """Starts workers, which are gone after the test."""
    from tests.ascend.topology import Cast

    with ExitStack() as stack:
        cast = Cast(fork_server, request.node.name, stack)
        yield cast
        request.node.user_properties.extend(("seen", text) for text in cast.seen)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, Any, Any]:
    """Note how each scenario went."""
    report: Any = yield
    callspec = getattr(item, "callspec", None)
    if callspec is not None and "release" in callspec.params:
        words = str(item.obj.__doc__).partition("\n")[0].rstrip(".")
        name = str(callspec.params["release"])
        case = callspec.id.removeprefix(name).strip("-")
        scenario = f"{words}: {case}" if case else words
        item.config.stash[TABLE].note(scenario, _version(name), report)
    return report


def _version(release: str) -> str:
    found = distributions(name="vllm-ascend", path=[str(FOLDER / release)])
    return next(iter(found)).version


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Show the table, and write it where ASCEND_TABLE says."""
    text = config.stash[TABLE].text()
    if text:
        terminalreporter.write_sep("=", "the real vllm-ascend")
        terminalreporter.write_line(text)
        if path := os.environ.get("ASCEND_TABLE"):
            page = Path(path)
            page.write_text(merged(page.read_text() if page.exists() else "", text))
