"""The simulated HCCL when something goes wrong: peers that die, freeze or never come.

Each test is a line of HCCL.md section 4, seen through the real torch_npu.
"""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.distributed import BroadcastOptions

from netloader.io.transports.backends import failure
from tests.npu.ranks import (
    World,
    new_group,
    other_memory,
    ranks,
    synchronize,
    together,
)
from tests.npu.simulator import torch_npu

LONG_S = 30.0
"""For what happens soon, on a machine that is slow."""
NOTIFY_TIMEOUT, FAULT = "507048", "507018"


def meet(world: World) -> None:
    """Make the communicator, so that later steps are about operations."""
    world.group.broadcast([torch.zeros(4, device="npu")], BroadcastOptions()).wait()
    torch_npu.npu.synchronize()


def post(world: World, verb: str, count: int = 4) -> None:
    tensor = torch.full((count,), 1.0 + world.rank, device="npu")
    torch_npu.npu.synchronize()
    work = world.group.batch_isend_irecv([verb], [tensor], [world.other])
    world.kept["work"] = (work, tensor)


def end(world: World, patience_s: float = LONG_S) -> tuple[bool, bool]:
    """Poll the work: whether it ended, and whether with an exception (whose text is empty)."""
    work, _ = world.kept["work"]
    limit = time.monotonic() + patience_s
    pause = threading.Event()
    while not work.is_completed() and time.monotonic() < limit:
        pause.wait(0.01)
    return state(world)


def state(world: World) -> tuple[bool, bool]:
    work, _ = world.kept["work"]
    completed = bool(work.is_completed())
    return completed, completed and bool(failure(work))


def finish(world: World) -> str:
    """Wait for all streams of the device on the host: what that raised."""
    try:
        torch_npu.npu.synchronize()
    except RuntimeError as error:
        return str(error)
    return ""


def test_a_killed_peer_is_noticed_at_once() -> None:
    with ranks(2) as (left, right):
        together([left, right], meet)
        left.takes(post, "irecv")
        assert left.takes(state) == (False, False)
        right.signal(signal.SIGKILL)
        assert left.takes(end) == (True, True)
        assert FAULT in left.takes(finish)


@pytest.mark.parametrize("verb", ["isend", "irecv"])
def test_a_killed_peer_is_noticed_only_by_the_execution_timeout(verb: str) -> None:
    knobs = {"SIM_HCCL_PEER_DEATH": "timeout", "SIM_HCCL_EXEC_TIMEOUT_MS": "1500"}
    with ranks(2, knobs) as (left, right):
        together([left, right], meet)
        left.takes(post, verb)
        right.signal(signal.SIGKILL)
        right.process.join()
        assert left.takes(state) == (False, False)
        assert NOTIFY_TIMEOUT in left.takes(finish)


def test_a_killed_peer_is_never_noticed() -> None:
    knobs = {"SIM_HCCL_PEER_DEATH": "never", "SIM_HCCL_EXEC_TIMEOUT_MS": "200"}
    with ranks(2, knobs) as (left, right):
        together([left, right], meet)
        left.takes(post, "irecv")
        right.signal(signal.SIGKILL)
        right.process.join()
        assert left.takes(end, 1.5) == (False, False)


def test_a_frozen_peer_is_silent_until_the_execution_timeout() -> None:
    with ranks(2, {"SIM_HCCL_EXEC_TIMEOUT_MS": "2000"}) as (left, right):
        together([left, right], meet)
        right.stop()
        left.takes(post, "isend", 1 << 22)
        assert left.takes(end, 0.5) == (False, False)
        assert NOTIFY_TIMEOUT in left.takes(finish)
        right.signal(signal.SIGCONT)


def test_the_execution_timeout_of_the_group_counts() -> None:
    with ranks(2, config={"hccl_exec_timeout": 1}) as (left, right):
        together([left, right], meet)
        left.takes(post, "irecv")
        begun = time.monotonic()
        assert NOTIFY_TIMEOUT in left.takes(finish)
        assert time.monotonic() - begun < LONG_S


def test_sizes_that_differ_fail_on_both_sides() -> None:
    with ranks(2) as pair:
        together(pair, meet)
        pair[0].takes(post, "isend", 5)
        pair[1].takes(post, "irecv", 4)
        assert together(pair, end) == [(True, True)] * 2
        assert all(FAULT in why for why in together(pair, finish))


@pytest.mark.parametrize("watchdog", [1, 2])
def test_the_watchdog_kills_the_process_of_a_group_whose_peer_died(watchdog: int) -> None:
    with ranks(2, watchdog=watchdog) as (left, right):
        together([left, right], meet)
        left.takes(post, "irecv")
        right.signal(signal.SIGKILL)
        if watchdog == 1:
            left.process.join(LONG_S)
            assert left.process.exitcode == -signal.SIGABRT
        else:
            assert left.takes(end)[0]
            left.process.join(3.0)  # the watchdog looks every second
            assert left.process.exitcode is None


def test_the_watchdog_kills_the_process_when_a_peer_is_silent_for_too_long() -> None:
    with ranks(2, watchdog=1, limit_s=2.0) as (left, right):
        together([left, right], meet)
        left.takes(post, "irecv")
        left.process.join(LONG_S)
        assert left.process.exitcode == -signal.SIGABRT
        assert right.takes(other_memory) > 0


def failing(world: World, path: str) -> tuple[bool, bool, str]:
    Path(path).touch()
    post(world, "isend")
    said = finish(world)
    return (*state(world), said)


def test_an_operation_fails_on_order(knob_file: str) -> None:
    with ranks(2, {"SIM_HCCL_FAIL": knob_file}) as (left, right):
        together([left, right], meet)
        ended, excepted, said = left.takes(failing, knob_file)
        assert (ended, excepted) == (True, True)
        assert FAULT in said


def test_a_failure_may_show_on_the_stream_alone(knob_file: str) -> None:
    knobs = {"SIM_HCCL_FAIL": knob_file, "SIM_HCCL_NO_ASYNC_ERR": "1"}
    with ranks(2, knobs) as (left, right):
        together([left, right], meet)
        _, excepted, said = left.takes(failing, knob_file)
        assert not excepted
        assert FAULT in said


def test_an_operation_is_refused_on_order(knob_file: str) -> None:
    with ranks(2, {"SIM_HCCL_SYNC_ERR": knob_file}) as pair:
        together(pair, meet)
        Path(knob_file).touch()
        pair[0].begin(post, "isend")
        assert "error code is 21" in pair[0].failure()
        Path(knob_file).unlink()
        together(pair, meet)


def test_a_byte_is_corrupted_on_order(knob_file: str) -> None:
    Path(knob_file).touch()
    with ranks(2) as pair:
        together(pair, meet)
        pair[0].takes(post, "isend")
        pair[1].takes(corrupt, knob_file)
        pair[1].takes(post, "irecv")
        assert together(pair, values)[1].count(1.0) == 3
        Path(knob_file).unlink()
        pair[0].takes(post, "isend")
        pair[1].takes(post, "irecv")
        assert together(pair, values)[1] == [1.0] * 4


def corrupt(world: World, path: str) -> None:
    os.environ["SIM_HCCL_CORRUPT"] = path


def values(world: World) -> list[float]:
    work, tensor = world.kept["work"]
    work.wait()
    return list(tensor.cpu().tolist())


def abort_in_flight(world: World) -> tuple[str, float]:
    post(world, "irecv")
    work, tensor = world.kept["work"]
    work.wait()
    world.group.abort_hccl_comm("because")
    torch_npu.npu.current_stream().synchronize()
    return str(tensor[0].item()), float(other_memory(world))


def test_an_operation_in_flight_is_dropped_by_destruction_and_reads_as_done() -> None:
    """Not to be built on: what hardware does is not known."""
    with ranks(2) as (left, right):
        together([left, right], meet)
        assert left.takes(abort_in_flight) == ("1.0", 0.0)


def create(world: World, name: str) -> float:
    begun = time.monotonic()
    group = new_group(world.spec, world.store, name)
    group.broadcast([torch.zeros(4, device="npu")], BroadcastOptions()).wait()
    torch_npu.npu.synchronize()
    return time.monotonic() - begun


def test_creation_blocks_while_it_is_told_to(knob_file: str) -> None:
    Path(knob_file).touch()
    with ranks(2, {"SIM_HCCL_INIT_BLOCKS": knob_file}) as pair:
        for rank in pair:
            rank.begin(create, "blocked")
        with pytest.raises(AssertionError, match="nothing heard"):
            pair[0].hear(1.0)
        Path(knob_file).unlink()
        for rank in pair:
            rank.answer()


def test_a_peer_that_never_joins_costs_the_connect_timeout() -> None:
    with ranks(2, {"HCCL_CONNECT_TIMEOUT": "2"}) as (left, right):
        left.begin(create, "alone")
        assert "error code is 9" in left.failure()
        assert right.takes(other_memory) == 0


def connect_within(world: World, seconds: int) -> None:
    os.environ["HCCL_CONNECT_TIMEOUT"] = str(seconds)


def test_root_info_of_a_group_that_is_gone_leads_nowhere() -> None:
    """Why a group is never used again after an abort: the store still has the old address."""
    with ranks(2) as pair:
        together(pair, create, "again")
        pair[1].takes(connect_within, 2)
        pair[1].begin(create, "again")
        assert "error code is 9" in pair[1].failure()


def test_two_ranks_on_one_device_of_one_host_are_refused() -> None:
    with ranks(2, {"SIM_HOST_ID": "same"}) as pair:
        for rank in pair:
            rank.begin(create, "refused")
        assert all("error code is 1" in rank.failure() for rank in pair)
    with ranks(2, {"SIM_HOST_ID": "same", "SIM_HCCL_ALLOW_SAME_DEVICE": "1"}) as pair:
        together(pair, create, "allowed")


def test_a_dead_peer_poisons_the_context_when_told_to() -> None:
    with ranks(2, {"SIM_CTX_POISON": "1"}) as (left, right):
        together([left, right], meet)
        left.takes(post, "irecv")
        right.signal(signal.SIGKILL)
        left.takes(end)
        left.begin(synchronize)
        assert FAULT in left.failure()


def free_everything(world: World) -> None:
    world.kept.clear()


def test_freeing_what_a_failed_operation_used_ends_the_process() -> None:
    """The allocator of torch_npu records an event on the failed stream, within a destructor."""
    with ranks(2) as (left, right):
        together([left, right], meet)
        left.takes(post, "irecv")
        right.signal(signal.SIGKILL)
        left.takes(end)
        left.begin(free_everything)
        left.process.join(LONG_S)
        assert left.process.exitcode == -signal.SIGABRT
