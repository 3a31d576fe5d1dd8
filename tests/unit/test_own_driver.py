"""The driver in docs/embed/driver.md is complete: in the simulated world, and on real sockets."""

import re
from pathlib import Path
from typing import Any

import pytest

from netloader.config import Endpoint
from netloader.fsm.client_session import ClientSession
from netloader.fsm.events import StopRequested
from netloader.fsm.identity import Identity
from netloader.fsm.messages import Purpose
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.fsm.terms import FetchSpec
from netloader.io.client_worker import ClientWorker
from netloader.io.clock import monotonic
from netloader.io.dialing import Dialer
from netloader.io.driver import Loop
from netloader.io.store.ledger import Ledger
from netloader.io.store.module import ModuleStore
from netloader.testing import World
from netloader.wire import LINGER_S, Connection
from tests.support.messages import CURIOUS, DEADLINES, GUARDED, NBYTES, OFFERING, SECURED, WISH
from tests.unit.io.helpers import FAST, IDENTITY, contents, serving, zoo

PAGE = Path(__file__).parents[2] / "docs" / "embed" / "driver.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
(SOURCE,) = (block for block in BLOCKS if "class Driver" in block)
PAIRS = {"plain": (WISH, OFFERING), "token": (SECURED, GUARDED), "curious": (CURIOUS, OFFERING)}
PAGE_NAMES: dict[str, Any] = {}
exec(compile(SOURCE, PAGE.name, "exec"), PAGE_NAMES)
Driver = PAGE_NAMES["Driver"]


def test_it_is_short_and_its_example_runs() -> None:
    _, _, whole = SOURCE.partition("class Driver")
    assert len(whole.splitlines()) <= 60

    exec(compile(BLOCKS[-1], PAGE.name, "exec"), {"Driver": Driver})


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("window", [10, 1 << 16])
def test_it_takes_the_steps_that_netloaders_own_driver_takes(pair: str, window: int) -> None:
    theirs, ours = World(*PAIRS[pair], window=window, drive=Driver), World(*PAIRS[pair])
    theirs.run()
    ours.run()

    for end, own in zip(theirs.ends, ours.ends, strict=True):
        assert [step.after for step in end.steps] == [step.after for step in own.steps]
        assert end.link.closed
    assert theirs.client_session.state is State.DONE
    assert (theirs.next_due(), theirs.now()) == (None, 0.0)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("fault", ["reset", "ended", "stalled", "stopped"])
def test_whatever_breaks_after_any_step_it_ends_right_and_in_time(pair: str, fault: str) -> None:
    spec, entry = PAIRS[pair]
    for steps in range(60):
        world = World(spec, entry, window=200, drive=Driver)
        world.run(most=steps)
        hurt(world, fault)
        world.run()
        longest = 2 * DEADLINES.handshake_s + DEADLINES.validate_s + DEADLINES.transfer_s(NBYTES)
        world.wait(longest + DEADLINES.connect_s + 2 * LINGER_S)
        world.run()
        assert all(end.link.closed for end in world.ends if end.linked), steps
        assert not any(end.linked and end.plug in world._watched for end in world.ends)


def hurt(world: World, fault: str) -> None:
    if fault == "reset":
        world.reset()
    elif fault == "stopped":
        world.server.link.handle(StopRequested()) if world.server.linked else None
    else:
        for pipe in world.pipes.values():
            setattr(pipe, fault, True)


def test_it_fills_a_model_over_real_sockets() -> None:
    target, deadlines = zoo(2), FAST
    weights = ModuleStore.of(target)
    with serving(zoo(1)) as server:
        dialer = Dialer(Endpoint(server.endpoint.host, server.endpoint.port), 5.0)
        spec = FetchSpec(
            Purpose.WEIGHTS,
            Identity(IDENTITY),
            weights.manifest,
            ("raw",),
            ("tcp",),
            ("blake3",),
            lanes=2,
        )
        session = ClientSession(spec, deadlines, "c" * 32, monotonic())
        worker = ClientWorker(Ledger(weights, lambda done, total: None), 2, dialer.dial, 20.0)
        loop = Loop()
        driver = Driver(loop, Connection(session), worker)
        driver.connected(dialer.dial())
        loop.run(lambda: bool(driver.closed))
        assert worker.join(20.0)
        loop.close()

    assert session.verdict is not None
    assert session.verdict.reason is Reason.VERIFIED
    assert contents(target) == contents(zoo(1))
