"""Sources that accept and say nothing: each costs one deadline, however often it could be asked."""

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from netloader.config import Endpoint
from netloader.fsm.identity import Identity
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.io.clock import monotonic
from netloader.io.describe import describe
from netloader.wire.connection import LINGER_S
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import FAST, IDENTITY, asking, closed_port, contents, serving, zoo

pytestmark = pytest.mark.usefixtures("driver")
HANDSHAKE_S = 3.0
HURRIED = replace(FAST, handshake_s=HANDSHAKE_S)
ANY = Identity({})


@contextlib.contextmanager
def silent() -> Iterator[Endpoint]:
    """A source whose port is open and that never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Endpoint("127.0.0.1", listener.getsockname()[1])


@pytest.mark.parametrize("count", [1, 2])
def test_a_silent_source_costs_describe_and_fill_one_deadline_and_is_named(count: int) -> None:
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(silent()) for _ in range(count)]
        begun = monotonic()
        found = describe(sources, ANY, asking(deadlines=HURRIED))
        options = asking(deadlines=HURRIED, silent=found.silent)
        outcome = fill(zoo(2), found.sources, IDENTITY, options)
        took = monotonic() - begun

    assert count * HANDSHAKE_S < took < count * (HANDSHAKE_S + LINGER_S) + 1.5
    assert outcome.state is State.FALLBACK
    assert [attempt.source for attempt in outcome.attempts] == sources
    assert {attempt.reason for attempt in outcome.attempts} == {Reason.DEADLINE_PASSED}
    assert all(f"{s}: deadline_passed (in handshake)" in outcome.history() for s in sources)


def test_behind_a_silent_source_the_next_is_asked_and_the_silent_one_stays_in_the_history() -> None:
    with silent() as first, serving(zoo(1)) as server:
        target = zoo(2)
        found = describe([first, server.endpoint], ANY, asking(deadlines=HURRIED))
        outcome = fill(target, found.sources, IDENTITY, asking(silent=found.silent))

    assert found.sources == (server.endpoint, first)
    assert outcome.ok
    assert outcome.source == server.endpoint
    assert contents(target) == contents(zoo(1))
    assert [a.reason for a in outcome.attempts] == [Reason.DEADLINE_PASSED, Reason.VERIFIED]


def test_a_source_that_refused_is_asked_again_for_it_may_be_starting() -> None:
    place = closed_port()
    found = describe([place], ANY, asking())
    assert found.silent == ()
    outcome = fill(zoo(2), found.sources, IDENTITY, asking(silent=found.silent))
    assert [a.reason for a in outcome.attempts] == [Reason.UNREACHABLE]


def test_a_fill_without_describe_asks_every_source() -> None:
    with silent() as source:
        (attempt,) = fill(zoo(2), [source], IDENTITY, asking(deadlines=HURRIED)).attempts
    assert attempt.reason is Reason.DEADLINE_PASSED
    assert attempt.silent
