"""Weights between NPUs over HCCL: every byte, in place, in few operations, by real processes."""

from functools import partial

import pytest

from tests.npu.topology import Cast, served, soon

FEW = 48
"""A few dozen: what 10,000 small tensors may cost in operations of HCCL."""


def test_every_kind_of_tensor_arrives_bit_exact_and_in_place(cast: Cast) -> None:
    server = cast.server(model="every_kind")

    served(cast.client(server), server)


def test_two_clients_of_one_server_get_the_same_bytes(cast: Cast) -> None:
    server = cast.server(model="every_kind")
    clients = [cast.client(server), cast.client(server, device=1)]

    for client in clients:
        served(client, server)


@pytest.mark.parametrize(
    ("giver", "taker", "transport"), [(1, 0, "hccl"), (0, 1, "hccl"), (3, 2, "hccl"), (3, 2, "tcp")]
)
def test_any_device_serves_any_other_and_no_other_is_touched(
    cast: Cast, giver: int, taker: int, transport: str
) -> None:
    knobs = {"SIM_NPU_COUNT": "4"}
    server = cast.server(device=giver, knobs=knobs, transports=(transport,))
    client = cast.client(server, device=taker, knobs=knobs)

    served(client, server)

    for peer, own in ((server, giver), (client, taker)):
        used = {"aclrtSetDevice", "aclrtMalloc", "aclrtMallocAlign32", "HcclCommInit"}
        assert {call.number("device") for call in cast.trace.of(used, peer.pid)} == {own}


def test_no_loop_waits_while_hccl_destroys_a_communicator(cast: Cast) -> None:
    server = cast.server()
    client = cast.client(server)
    served(client, server)

    for peer in (server, client):
        ended = partial(cast.trace.of, {"HcclCommDestroy"}, peer.pid)
        soon(ended, "the communicator is gone")
        (end,) = ended()
        assert end.tid in {call.tid for call in cast.operations(peer.pid)}


def test_ten_thousand_small_tensors_cost_a_few_dozen_operations(cast: Cast) -> None:
    server = cast.server(model="crumbs", segment_mib=64)
    client = cast.client(server)

    served(client, server)

    for pid in (server.pid, client.pid):
        operations = cast.operations(pid)
        print(f"{len(operations)} operations of HCCL in process {pid}")
        assert 0 < len(operations) <= FEW


@pytest.mark.parametrize("model", ["fractal", "fractal_packed"])
def test_private_storage_formats_are_converted_on_both_sides(cast: Cast, model: str) -> None:
    server = cast.server(model=model)

    served(cast.client(server), server)
