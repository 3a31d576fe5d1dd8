"""Where servers and clients are: ranks, device numbers, one device for two instances."""

from dataclasses import replace

from tests.ascend.topology import (
    Cast,
    WorkerSpec,
    placed_replica,
    ranks_paired,
    replica,
    tensor_rank,
)
from tests.npu.trace import CREATING, MOVING, Trace

PROCESSED = {"LAYOUT": "processed"}
TENSOR_PARALLEL = {"tensor_parallel_size": 2}
EXPERTS = {"enable_expert_parallel": True}


def test_other_device_numbers(cast: Cast) -> None:
    """Server on device 2, client on device 0, W8A8."""
    wanted = WorkerSpec("llama-w8a8", PROCESSED)
    server = cast.offering(replace(wanted, device=2))
    client = cast.client(wanted, server.port).up()
    cast.compare(server.actor, client)


def test_two_instances_on_one_device(cast: Cast) -> None:
    """Server and client on device 0, seen from two containers."""
    wanted = WorkerSpec("llama-w8a8", PROCESSED)
    server = cast.offering(wanted)
    elsewhere = replace(wanted, environment={"SIM_HOST_ID": "other"})
    client = cast.client(elsewhere, server.port).up()
    cast.compare(server.actor, client)


def test_two_instances_on_one_device_of_one_host(cast: Cast) -> None:
    """Server and client on device 0 of one host, TRANSPORT tcp."""
    wanted = WorkerSpec("llama-w8a8", {**PROCESSED, "TRANSPORT": "tcp"})
    server = cast.offering(wanted)
    client = cast.client(wanted, server.port).up()
    cast.compare(server.actor, client)


def test_hccl_refuses_one_device_of_one_host(cast: Cast) -> None:
    """Server and client on device 0 of one host, which HCCL refuses: over tcp."""
    wanted = WorkerSpec("llama-w8a8", PROCESSED)
    server = cast.offering(wanted)
    trace = Trace(str(cast.trace))
    client = cast.client(wanted, server.port).up()
    for actor in (server.actor, client):
        assert [call for call in trace.of(CREATING, actor.pid) if call.number("ranks") == 2]
        assert trace.of(MOVING, actor.pid) == []
    cast.compare(server.actor, client)


def test_tensor_parallel(cast: Cast) -> None:
    """Tensor parallel 2, W8A8, on four devices."""
    ranks_paired(cast, WorkerSpec("llama-w8a8", PROCESSED, TENSOR_PARALLEL), tensor_rank)


def test_tensor_parallel_experts(cast: Cast) -> None:
    """Tensor parallel 2 with expert parallel, MoE W8A8."""
    options = {**TENSOR_PARALLEL, **EXPERTS}
    ranks_paired(cast, WorkerSpec("moe-w8a8", PROCESSED, options), tensor_rank)


def test_data_parallel(cast: Cast) -> None:
    """Data parallel 2 with expert parallel, MoE W8A8."""
    place = placed_replica if cast.release.name == "0.23" else replica
    ranks_paired(cast, WorkerSpec("moe-w8a8", PROCESSED, EXPERTS), place)


def test_a_client_serves(cast: Cast) -> None:
    """A client of a client."""
    wanted = WorkerSpec("moe-w8a8", PROCESSED)
    first = cast.offering(wanted)
    second = cast.chained(replace(wanted, device=1), first.port)
    third = cast.client(replace(wanted, device=2), second.port).up()
    cast.compare(first.actor, third)
