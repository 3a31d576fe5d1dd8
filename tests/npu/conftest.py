"""What the NPU tests share. Without torch_npu (`make test-npu` has it) there are none."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.npu.topology import Cast

if find_spec("torch_npu") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import tests.npu.simulator  # noqa: F401 - before a test module imports torch_npu


@pytest.fixture(scope="session")
def trace_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The call log of all peers, who are forked from a process that is started here."""
    from multiprocessing.forkserver import ensure_running

    path = str(tmp_path_factory.mktemp("cann") / "trace")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SIM_CANN_TRACE", path)
        ensure_running()
    return path


@pytest.fixture
def cast(trace_path: str) -> Iterator["Cast"]:
    """Starts servers and clients, which are gone after the test."""
    from tests.npu.topology import Cast

    with ExitStack() as stack:
        yield Cast(stack, trace_path)


@pytest.fixture
def knob_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file that does not exist yet: knobs that name one are on while it does."""
    return os.fspath(tmp_path_factory.mktemp("knob") / "on")
