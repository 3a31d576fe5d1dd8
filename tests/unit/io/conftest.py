"""Every test of this folder ends with none of netloader's threads running."""

from collections.abc import Iterator

import pytest

from tests.unit.io.drivers import DRIVERS
from tests.unit.io.helpers import eventually, our_threads


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    before = our_threads()
    yield
    assert eventually(lambda: our_threads() <= before), our_threads() - before


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test runs once on each driver."""
    with DRIVERS[request.param]():
        yield
