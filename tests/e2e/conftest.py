"""One nursery for all engine tests of a run."""

from collections.abc import Iterator

import pytest

from tests.e2e.engines import Nursery


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """A process that has imported vLLM and forks engines."""
    nursery = Nursery(tmp_path_factory.mktemp("engines"))
    yield nursery
    nursery.close()
