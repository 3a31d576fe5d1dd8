"""Every test of this folder ends with none of netloader's threads running."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from netloader.fsm.identity import Identity
from netloader.io.published import PublishedModel
from netloader.io.publishing import ServerOptions, publish
from netloader.io.store.module import ModuleStore
from tests.unit.io.drivers import DRIVERS
from tests.unit.io.helpers import IDENTITY, KIB, SOON_S, eventually, our_threads, zoo
from tests.unit.io.sites import Lines, Site
from tests.unit.io.workers import Heard


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


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def site(stack: ExitStack, captured: Lines) -> Site:
    return Site(stack, captured)


@pytest.fixture
def sessions_end() -> Iterator[None]:
    """Ends the session of every worker of a test."""
    yield
    while Heard.made:
        worker = Heard.made.pop()
        worker.close()
        worker.join(SOON_S)


@pytest.fixture
def published() -> PublishedModel:
    options = ServerOptions(segment_bytes=64 * KIB, max_clients=1)
    made = publish(ModuleStore.of(zoo(1)), Identity(IDENTITY), options)
    made.seal()
    return made
