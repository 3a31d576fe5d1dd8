"""The simulated HCCL under the real torch_npu: what arrives, and what it costs.

What a test says of HCCL here is a fact of HCCL.md or of its documentation.
"""

import ctypes
from typing import Any

import pytest
import torch
from torch.distributed import (
    AllreduceOptions,
    BroadcastOptions,
)

from tests.npu.ranks import (
    World,
    new_group,
    noise,
    other_memory,
    ranks,
    same_bytes,
    synchronize,
    together,
)
from tests.npu.simulator import torch_npu
from tests.npu.trace import Trace

ProcessGroupHCCL = torch_npu._C._distributed_c10d.ProcessGroupHCCL

MIB = 1 << 20
DTYPES = (
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.bool, torch.uint8,
    torch.int8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip
NULL_POINTER = 2
"""HCCL_E_PTR."""


def exchange_types(world: World) -> list[str]:
    wrong = []
    for number, dtype in enumerate(DTYPES):
        told = noise(dtype, 1001, number)
        if world.rank == 0:
            world.group.send([told.to("npu")], 1, 0).wait()
        else:
            heard = torch.empty(1001, dtype=dtype, device="npu")
            world.group.recv([heard], 0, 0).wait()
            if not same_bytes(heard.cpu(), told):
                wrong.append(str(dtype))
    synchronize(world)
    return wrong


def send_eight_bit_floats(world: World) -> None:
    world.group.send([torch.zeros(8, dtype=torch.float8_e4m3fn).to("npu")], world.other, 0)


def test_every_data_type_travels_bit_exactly() -> None:
    with ranks(2) as pair:
        assert together(pair, exchange_types) == [[], []]
        for rank in pair:
            rank.begin(send_eight_bit_floats)
        for rank in pair:  # before Ascend950 they have to travel as bytes
            assert "error code is 5" in rank.failure()


def collect(world: World) -> dict[str, Any]:
    rank, size = world.spec.rank, world.spec.ranks
    options = BroadcastOptions()
    options.rootRank, options.rootTensor = 1, 0
    said = noise(torch.bfloat16, 5001, rank).to("npu")
    world.group.broadcast([said], options).wait()
    total = torch.full((33,), float(2**rank), dtype=torch.float32, device="npu")
    world.group.allreduce([total], AllreduceOptions()).wait()
    parts = torch.empty(size * 7, dtype=torch.int64, device="npu")
    own = torch.full((7,), rank, dtype=torch.int64, device="npu")
    world.group._allgather_base(parts, own).wait()
    return {
        "broadcast": same_bytes(said.cpu(), noise(torch.bfloat16, 5001, 1)),
        "total": set(total.cpu().tolist()),
        "parts": parts.cpu().reshape(size, 7)[:, 0].tolist(),
    }


def ring(world: World) -> bool:
    rank, size = world.spec.rank, world.spec.ranks
    after, before = (rank + 1) % size, (rank - 1) % size
    told = noise(torch.uint8, 3 * MIB, rank).to("npu")
    heard = torch.empty_like(told)
    world.group.batch_isend_irecv(["isend", "irecv"], [told, heard], [after, before]).wait()
    return same_bytes(heard.cpu(), noise(torch.uint8, 3 * MIB, before))


@pytest.mark.parametrize("count", [2, 3])
def test_collectives_and_batches_reach_all_ranks(count: int) -> None:
    with ranks(count) as all_ranks:
        expected = {
            "broadcast": True,
            "total": {float(2**count - 1)},
            "parts": list(range(count)),
        }
        assert together(all_ranks, collect) == [expected] * count
        assert together(all_ranks, ring) == [True] * count


def post(world: World, verb: str, count: int, name: str = "work") -> None:
    """Queue a send or a receive, and remember it; nobody waits for anything here."""
    tensor = torch.full((count,), float(world.rank), device="npu")
    torch_npu.npu.synchronize()
    work = world.group.batch_isend_irecv([verb], [tensor], [world.other])
    world.kept[name] = (work, tensor)


def poll(world: World, name: str = "work") -> bool:
    return bool(world.kept[name][0].is_completed())


def first_of(world: World, name: str = "work") -> float:
    work, tensor = world.kept[name]
    work.wait()
    return float(tensor[0].item())


def test_nothing_leaves_a_sender_before_the_receiver_is_there() -> None:
    with ranks(2) as (sender, receiver):
        together([sender, receiver], collect)
        sender.takes(post, "isend", 1)
        assert not sender.takes(poll)
        receiver.takes(post, "irecv", 1)
        assert receiver.takes(first_of) == 0.0
        sender.takes(first_of)
        assert sender.takes(poll)


def test_a_wait_only_makes_the_stream_wait() -> None:
    with ranks(2) as (sender, receiver):
        together([sender, receiver], collect)
        receiver.takes(post, "irecv", 1 << 20)
        assert receiver.takes(wait_at_once) == (True, False)
        sender.takes(post, "isend", 1 << 20)
        assert receiver.takes(first_of) == 0.0


def wait_at_once(world: World) -> tuple[bool, bool]:
    work, _ = world.kept["work"]
    return bool(work.wait()), bool(work.is_completed())


def hold(world: World) -> list[int]:
    """Make a communicator, use it, and let it go: what the device's memory says each time."""
    told = [other_memory(world)]
    group = new_group(world.spec, world.store, "second")
    told.append(other_memory(world))
    options = BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    group.broadcast([torch.zeros(4, device="npu")], options).wait()
    torch_npu.npu.synchronize()
    told.append(other_memory(world))
    group.abort_hccl_comm("done")
    told.append(other_memory(world))
    return [b - told[0] for b in told]


@pytest.mark.parametrize(
    ("knobs", "config", "mib"),
    [
        ({}, {}, 400),
        ({"HCCL_BUFFSIZE": "32"}, {}, 64),
        ({"HCCL_BUFFSIZE": "32"}, {"hccl_buffer_size": 8}, 16),
    ],
)
def test_a_communicator_costs_memory_from_its_first_use_to_its_end(
    knobs: dict[str, str], config: dict[str, int], mib: int
) -> None:
    with ranks(2, knobs, config=config) as pair:
        assert together(pair, hold) == [[0, 0, mib * MIB, 0]] * 2


def test_a_communicator_that_does_not_fit_is_refused() -> None:
    with ranks(2, {"SIM_HBM_BYTES": str(300 * MIB)}) as pair:
        for rank in pair:
            rank.begin(hold)
        for rank in pair:
            assert "error code is 3" in rank.failure()


def batch_of(world: World, count: int) -> None:
    verb = "isend" if world.rank == 0 else "irecv"
    tensors = [torch.zeros(3, device="npu") for _ in range(count)]
    world.group.batch_isend_irecv([verb] * count, tensors, [world.other] * count).wait()
    torch_npu.npu.synchronize()


def coalesced(world: World, count: int) -> None:
    """As batch_isend_irecv of torch.distributed does on a new CANN."""
    tensors = [torch.full((3,), float(world.rank), device="npu") for _ in range(count)]
    world.group._group_start()
    for tensor in tensors:
        if world.rank == 0:
            world.group.send([tensor], 1, 0)
        else:
            world.group.recv([tensor], 0, 0)
    world.group._group_end()
    torch_npu.npu.synchronize()
    assert [t[0].item() for t in tensors] == [0.0] * count


def test_a_batch_is_one_operation_in_the_call_log(trace_path: str) -> None:
    with ranks(2, {"SIM_CANN_TRACE": trace_path}) as pair:
        trace = Trace(trace_path)
        together(pair, batch_of, 100)
        together(pair, batch_of, 7)
        sends = trace.of(["HcclBatchSendRecv"], pair[0].pid)
        receives = trace.of(["HcclBatchSendRecv"], pair[1].pid)
        assert [call.number("sends") for call in sends] == [100, 7]
        assert [call.number("sent") for call in sends] == [1200, 84]
        assert [call.number("receives") for call in receives] == [100, 7]


@pytest.mark.skipif(
    not hasattr(ProcessGroupHCCL, "_group_start"), reason="torch_npu 2.10 has no such groups"
)
def test_a_group_of_operations_is_one_in_the_call_log(trace_path: str) -> None:
    with ranks(2, {"SIM_CANN_TRACE": trace_path}) as pair:
        trace = Trace(trace_path)
        together(pair, coalesced, 5)
        assert len(trace.of(["HcclSend"], pair[0].pid)) == 5
        ends = trace.of(["HcclGroupEnd"], pair[0].pid)
        assert sum(call.number("messages") for call in ends) == 5


def bad_handles(world: World) -> list[int]:
    library = ctypes.CDLL("libhccl.so")
    root, error = ctypes.create_string_buffer(4108), ctypes.c_int(-1)
    comm = ctypes.c_void_p()
    library.HcclGetRootInfo(root)
    library.HcclCommInitRootInfo(1, root, 0, ctypes.byref(comm))
    asked = [
        library.HcclGetCommAsyncError(handle, ctypes.byref(error))
        for handle in (ctypes.c_void_p(None), comm)
    ]
    library.HcclCommDestroy(comm)
    asked.append(library.HcclGetCommAsyncError(comm, ctypes.byref(error)))
    asked.append(library.HcclCommDestroy(comm))
    return asked


def test_a_handle_that_is_null_or_destroyed_is_an_error_and_no_crash() -> None:
    with ranks(1) as (rank,):
        assert rank.takes(bad_handles) == [NULL_POINTER, 0, NULL_POINTER, NULL_POINTER]
