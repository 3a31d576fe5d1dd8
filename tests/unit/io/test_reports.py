"""Progress callbacks: what they do costs their own time, and never a transfer."""

import sys
import threading
from typing import Any

import pytest

from netloader.io.store.ledger import Lease, Ledger
from netloader.io.store.module import ModuleStore
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import (
    IDENTITY,
    SOON_S,
    Source,
    asking,
    contents,
    module_of,
    random,
    sealed,
    serving,
    zoo,
)

pytestmark = pytest.mark.usefixtures("driver")
Lines = list[dict[str, Any]]


class HostError(Exception):
    """What a callback raises."""


@pytest.mark.parametrize("error", [HostError("no display"), SystemExit(3), TimeoutError(110, "x")])
@pytest.mark.parametrize("transport", ["tcp", "gloo"])
def test_a_callback_that_raises_ends_no_transfer_and_is_logged_once(
    error: BaseException, transport: str, captured: Lines
) -> None:
    calls, target = list[int](), zoo(2)

    def broken(done: int, total: int) -> None:
        calls.append(done)
        raise error

    with serving(zoo(1)) as server:
        outcome = fill(
            target, [sealed(server).endpoint], IDENTITY, asking(transport, report=broken)
        )

    assert outcome.ok
    assert len(outcome.attempts) == 1
    assert contents(target) == contents(zoo(1))
    assert len(calls) > 1, "it is called on, because the next call may succeed"
    assert calls[-1] == outcome.nbytes
    (line,) = [line for line in captured if line["event"] == "netloader.report.failed"]
    assert (line["severity"], line["exc_info"]) == ("WARNING", error)


def four(seed: int) -> Any:
    return module_of(**{f"w{i}": random(250, seed=seed + i) for i in range(4)})


def lease_of(report: Any) -> tuple[Ledger, Lease, Source]:
    source = Source(four(1), 1000)
    ledger = Ledger(ModuleStore.of(four(50)), report)
    return ledger, ledger.lease(source.offer), source


def deliver(lease: Lease, source: Source, index: int) -> None:
    incoming = lease.expect(lease.segments[index])
    (view,) = incoming.views()
    view[:] = source.blocks[index]
    incoming.update(view)


def in_thread(*call: Any) -> threading.Thread:
    thread = threading.Thread(target=call[0], args=call[1:], daemon=True)
    thread.start()
    return thread


def test_a_callback_may_look_at_what_is_verified() -> None:
    seen, ledgers = list[int](), list[Ledger]()
    ledger, lease, source = lease_of(lambda *_: seen.append(len(ledgers[0].progress.verified)))
    ledgers.append(ledger)
    receiving = in_thread(deliver, lease, source, 0)
    receiving.join(SOON_S)

    assert not receiving.is_alive(), "the callback waits for a lock that its own thread holds"
    assert seen == [1]


def test_a_slow_callback_holds_no_other_lane_up_and_the_last_count_is_reported() -> None:
    begun, go_on, told = threading.Event(), threading.Event(), list[tuple[int, int]]()

    def slow(done: int, total: int) -> None:
        told.append((done, total))
        begun.set()
        go_on.wait(SOON_S)

    ledger, lease, source = lease_of(slow)
    first = in_thread(deliver, lease, source, 0)
    assert begun.wait(SOON_S)
    others = [in_thread(deliver, lease, source, i) for i in (1, 2, 3)]
    for thread in others:
        thread.join(SOON_S / 4)
    held_up = [thread for thread in others if thread.is_alive()]
    go_on.set()
    first.join(SOON_S)

    assert not held_up
    assert ledger.progress.missing() == ()
    assert told == [(1000, 4000), (4000, 4000)]


def test_counts_only_grow_and_end_with_all_whatever_threads_do() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            told: list[tuple[int, int]] = []
            _, lease, source = lease_of(lambda done, total, told=told: told.append((done, total)))
            threads = [in_thread(deliver, lease, source, i) for i in range(4)]
            for thread in threads:
                thread.join(SOON_S)
            assert told == sorted(set(told))
            assert told[-1] == (4000, 4000)
    finally:
        sys.setswitchinterval(interval)
