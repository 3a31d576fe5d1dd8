"""Background work: nicer than the engine where that is allowed, and never gone without a word."""

import os
import threading
from functools import partial
from typing import Any

import pytest

from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.io import fill
from netloader.io.background import Background, in_background
from netloader.io.store import digests
from netloader.io.worker import THREAD_NAME
from tests.unit.io.helpers import (
    ALGORITHM,
    FAST,
    IDENTITY,
    SOON_S,
    asking,
    contents,
    eventually,
    serving,
    zoo,
)

Lines = list[dict[str, Any]]


def failures(lines: Lines) -> Lines:
    return [line for line in lines if line["event"] == "netloader.background.failed"]


def test_where_no_priority_may_be_set_the_work_is_done_all_the_same(
    monkeypatch: pytest.MonkeyPatch, captured: Lines
) -> None:
    # A hardened service: SystemCallFilter=~@resources, a seccomp profile.
    def denied(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", denied)
    target = zoo(2)
    with serving(zoo(1)) as server:
        assert fill(target, [server.endpoint], IDENTITY, asking()).ok
    assert contents(target) == contents(zoo(1))
    assert failures(captured) == []


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("odd kernel"), OSError(5, "EIO")])
def test_digests_that_cannot_be_computed_withdraw_the_offer_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, captured: Lines, error: Exception
) -> None:
    def broken(threads: int) -> Any:
        raise error

    monkeypatch.setitem(digests.ALGORITHMS, ALGORITHM, broken)
    with serving(zoo(1)) as server:
        (attempt,) = fill(zoo(2), [server.endpoint], IDENTITY, asking()).attempts

    assert attempt.reason is Reason.NOT_SERVING
    assert attempt.detail.startswith(f"digests cannot be computed ({type(error).__name__}")
    (line,) = failures(captured)
    assert line["severity"] == "ERROR"
    assert line["netloader.work"] == "netloader-seal"
    assert type(error).__name__ in line["netloader.detail"]


def test_without_a_thread_for_digests_clients_are_refused_with_the_cause(
    monkeypatch: pytest.MonkeyPatch, captured: Lines
) -> None:
    start = threading.Thread.start

    def sometimes(thread: threading.Thread) -> None:
        if thread.name == "netloader-seal":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", sometimes)
    with serving(zoo(1)) as server:
        (attempt,) = fill(zoo(2), [server.endpoint], IDENTITY, asking()).attempts

    assert attempt.reason is Reason.NOT_SERVING
    assert "can't start new thread" in attempt.detail
    assert len(failures(captured)) == 1


def test_an_error_of_background_work_is_passed_to_the_caller(captured: Lines) -> None:
    def work() -> None:
        raise ValueError("seven")

    heard: list[Exception] = []
    in_background("netloader-test", work, heard.append).join(SOON_S)
    assert [str(error) for error in heard] == ["seven"]
    assert failures(captured)[0]["netloader.detail"] == "ValueError: seven"


def test_work_that_comes_while_the_interpreter_exits_is_not_begun_and_delays_nothing(
    captured: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit thread of a server begins work at any moment, also at this one."""
    background, starting, go = Background(), threading.Event(), threading.Event()
    start, heard, done = threading.Thread.start, list[Exception](), list[str]()

    def slowly(thread: threading.Thread) -> None:
        if thread.name == "netloader-test":
            starting.set()
            assert go.wait(SOON_S)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", slowly)
    caller = threading.Thread(
        target=background.run, args=("netloader-test", partial(done.append, "work"))
    )
    caller.start()
    assert starting.wait(SOON_S)
    threading.Timer(0.1, go.set).start()
    background.end()
    assert done == ["work"], "it is waited for, once it has begun"
    late = background.run("netloader-test", partial(done.append, "late"), heard.append)
    caller.join(SOON_S)
    assert (late.ident, done, [str(e) for e in heard]) == (None, ["work"], ["the process ends"])
    assert failures(captured) == []


@pytest.mark.parametrize(
    ("side", "reason"), [("server", Reason.BUSY), ("client", Reason.TRANSFER_FAILED)]
)
def test_a_session_without_a_thread_for_its_work_ends_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, captured: Lines, side: str, reason: Reason
) -> None:
    start = threading.Thread.start
    workers = iter(("server", "client"))  # an offer is prepared before a client needs a thread

    def sometimes(thread: threading.Thread) -> None:
        if thread.name == THREAD_NAME and next(workers, "") == side:
            raise RuntimeError("can't start new thread")
        start(thread)

    with serving(zoo(1)) as server:
        monkeypatch.setattr(threading.Thread, "start", sometimes)
        (attempt,) = fill(zoo(2), [server.endpoint], IDENTITY, asking()).attempts
        monkeypatch.setattr(threading.Thread, "start", start)
        assert fill(zoo(2), [server.endpoint], IDENTITY, asking()).ok

    assert attempt.reason is reason
    assert "can't start new thread" in attempt.detail
    assert not [line for line in captured if line["event"] == "netloader.driver.error"]


def test_a_client_without_a_thread_to_connect_on_has_an_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with serving(zoo(1)) as server, monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", denied)
        (attempt,) = fill(zoo(2), [server.endpoint], IDENTITY, asking()).attempts
    assert attempt.reason is Reason.UNREACHABLE
    assert attempt.detail == "this side: can't start new thread; raise pids.max"


@pytest.mark.parametrize("started", [0, 1])
def test_a_lane_without_a_thread_stops_the_others_before_their_sockets_are_closed(
    monkeypatch: pytest.MonkeyPatch, started: int
) -> None:
    # A thread that is still reading from a descriptor which means something else by now would
    # write other bytes into the model.
    start, lanes = threading.Thread.start, list[threading.Thread]()

    def sometimes(thread: threading.Thread) -> None:
        if thread.name.startswith("netloader-lane"):
            if len(lanes) == started:
                raise RuntimeError("can't start new thread")
            lanes.append(thread)
        start(thread)

    with serving(zoo(1)) as server:
        monkeypatch.setattr(threading.Thread, "start", sometimes)
        outcome = fill(zoo(2), [server.endpoint], IDENTITY, asking(lanes=4))
        assert not any(thread.is_alive() for thread in lanes[:started])
        monkeypatch.setattr(threading.Thread, "start", start)
        assert eventually(lambda: fill(zoo(2), [server.endpoint], IDENTITY, asking(lanes=4)).ok)

    (attempt,) = outcome.attempts
    assert attempt.reason is Reason.TRANSFER_FAILED
    assert "can't start new thread" in attempt.detail
    assert attempt.seconds[State.TRANSFER] < FAST.stall_s
