"""Streams and events on the simulated runtime, under the real torch_npu."""

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ascend_sim.probe import (
    COPY_FAILED,
    NOT_FINISHED_IN_TIME,
    PATIENCE,
    POISON,
    WAITED_TOO_LONG,
    copy_on,
    handle,
    hold,
    npu,
    reads,
    runtime,
)


@pytest.fixture(autouse=True)
def clean_device() -> Iterator[None]:
    npu.set_device(0)
    npu.synchronize()
    npu.empty_cache()  # what is allocated from here on is fresh, and so poisoned
    yield
    for device in range(npu.device_count()):
        assert runtime.aclrtDeviceTaskAbort(device, 0) == 0
    npu.set_device(0)


def test_a_copy_from_pinned_memory_happens_later() -> None:
    source = torch.full((4096,), 7, dtype=torch.uint8).pin_memory()
    target = torch.empty(4096, dtype=torch.uint8, device="npu")
    stream = npu.Stream()
    npu.synchronize()
    with hold(stream), npu.stream(stream):
        target.copy_(source, non_blocking=True)
        assert reads(target, POISON)
        assert not stream.query()
    stream.synchronize()
    assert reads(target, 7)


def test_a_copy_from_ordinary_memory_is_waited_for() -> None:
    target = torch.empty(64, dtype=torch.uint8, device="npu")
    stream = npu.Stream()
    there, ordinary = ctypes.c_void_p(target.data_ptr()), ctypes.create_string_buffer(b"\x09" * 64)
    size = ctypes.c_size_t(64)
    copied: list[int] = []

    def copy() -> None:
        # torch_npu mostly copies ordinary memory in other ways: this is the call itself.
        copied.append(runtime.aclrtMemcpyAsync(there, size, ordinary, size, 1, handle(stream)))

    thread = threading.Thread(target=copy)
    with hold(stream):
        thread.start()
        thread.join(0.5)
        assert not copied
    thread.join(PATIENCE)
    assert copied == [0]
    assert reads(target, 9)


def test_a_stream_waits_for_the_event_of_another() -> None:
    first, second = npu.Stream(), npu.Stream()
    source = torch.full((64,), 1, dtype=torch.uint8).pin_memory()
    target = torch.empty(64, dtype=torch.uint8, device="npu")
    event = npu.Event()
    npu.synchronize()
    with hold(first):
        event.record(first)
        second.wait_event(event)
        with npu.stream(second):
            target.copy_(source, non_blocking=True)
        assert not event.query()
        assert not second.query()
        assert reads(target, POISON)
    second.synchronize()
    assert event.query()
    assert reads(target, 1)


def test_a_wait_is_for_the_recording_that_was_the_last_then() -> None:
    first, second, third = npu.Stream(), npu.Stream(), npu.Stream()
    event = npu.Event()
    with hold(third):
        with hold(second):
            event.record(first)
            second.wait_event(event)
            event.record(third)
        second.synchronize()
        assert not third.query()
        assert not event.query()
    event.synchronize()
    assert event.query()


def test_nobody_waits_for_an_event_that_was_never_recorded() -> None:
    stream = npu.Stream()
    event = npu.Event()
    event.record()
    event.synchronize()
    fresh = ctypes.c_void_p()
    assert runtime.aclrtCreateEventExWithFlag(ctypes.byref(fresh), 0) == 0
    assert runtime.aclrtStreamWaitEvent(handle(stream), fresh) == 0
    assert runtime.aclrtSynchronizeStreamWithTimeout(handle(stream), int(PATIENCE * 1000)) == 0
    assert runtime.aclrtDestroyEvent(fresh) == 0


def test_the_time_between_events_is_that_of_the_stream() -> None:
    stream = npu.Stream()
    begin, end = npu.Event(enable_timing=True), npu.Event(enable_timing=True)
    begin.record(stream)
    begin.synchronize()
    with hold(stream):
        end.record(stream)
        assert runtime.aclrtSynchronizeStreamWithTimeout(handle(stream), 30) == NOT_FINISHED_IN_TIME
    end.synchronize()
    assert 30 <= begin.elapsed_time(end) < PATIENCE * 1000


def test_a_stream_that_waits_too_long_for_an_event_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_OP_WAIT_TIMEOUT_MS", "100")
    first, second = npu.Stream(), npu.Stream()
    event = npu.Event()
    with hold(first):
        event.record(first)
        second.wait_event(event)
        with pytest.raises(RuntimeError, match=str(WAITED_TOO_LONG)):
            second.synchronize()


@pytest.fixture
def failing_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    knob = tmp_path / "fail"
    monkeypatch.setenv("SIM_FAIL_COPIES", str(knob))
    return knob


def fail(stream: Any, knob: Path) -> None:
    knob.touch()
    copy_on(stream)
    with pytest.raises(RuntimeError, match=str(COPY_FAILED)):
        stream.synchronize()
    knob.unlink()


def test_a_failed_stream_takes_no_work_and_the_others_do(failing_copies: Path) -> None:
    failed, other = npu.Stream(), npu.Stream()
    fail(failed, failing_copies)
    with pytest.raises(RuntimeError, match=str(COPY_FAILED)):
        copy_on(failed)
    done = copy_on(other)
    other.synchronize()
    assert reads(done, 3)


def test_a_failed_stream_takes_its_context_along(
    failing_copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_CTX_POISON", "1")
    failed, other, elsewhere = npu.Stream(), npu.Stream(), npu.Stream(device="npu:1")
    with hold(elsewhere):
        done = copy_on(elsewhere)
        fail(failed, failing_copies)
        with pytest.raises(RuntimeError, match=str(COPY_FAILED)):
            copy_on(other)
    elsewhere.synchronize()
    assert reads(done, 3)


def test_a_poisoned_context_ends_what_its_other_streams_wait_for(
    failing_copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_CTX_POISON", "1")
    failed, held, waiting = npu.Stream(), npu.Stream(device="npu:1"), npu.Stream()
    event = npu.Event()
    with hold(held):
        with npu.device(1):
            event.record(held)
        waiting.wait_event(event)
        fail(failed, failing_copies)
        with pytest.raises(RuntimeError, match=str(COPY_FAILED)):
            waiting.synchronize()
        assert not held.query()


def test_an_aborted_device_works_again(failing_copies: Path) -> None:
    failed = npu.Stream()
    fail(failed, failing_copies)
    npu.stop_device(0)
    npu.restart_device(0)
    done = copy_on(failed)
    failed.synchronize()
    assert reads(done, 3)


@pytest.mark.parametrize("complete", [False, True])
def test_what_becomes_of_an_event_on_a_failed_stream(
    failing_copies: Path, monkeypatch: pytest.MonkeyPatch, complete: bool
) -> None:
    monkeypatch.setenv("SIM_EVENT_COMPLETE_ON_ERROR", str(int(complete)))
    failed = npu.Stream()
    event = npu.Event()
    with hold(failed):
        failing_copies.touch()
        copy_on(failed)
        event.record(failed)
    with pytest.raises(RuntimeError, match=str(COPY_FAILED)):
        failed.synchronize()
    assert event.query() is complete
    if not complete:
        with pytest.raises(RuntimeError, match=str(COPY_FAILED)):
            event.synchronize()
