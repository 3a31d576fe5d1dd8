"""Where servers and clients are: ranks, device numbers, one device for two instances."""

from dataclasses import replace

from tests.ascend.cast import Cast, Wish, placed_replica, ranks_paired, replica, tensor_rank

PROCESSED = {"LAYOUT": "processed"}
TENSOR_PARALLEL = {"tensor_parallel_size": 2}
EXPERTS = {"enable_expert_parallel": True}


def test_other_device_numbers(cast: Cast) -> None:
    """Server on device 2, client on device 0, W8A8."""
    wish = Wish("llama-w8a8", PROCESSED)
    server = cast.offering(replace(wish, device=2))
    client = cast.client(wish, server.port).up()
    cast.compare(server.actor, client)


def test_two_instances_on_one_device(cast: Cast) -> None:
    """Server and client on device 0, seen from two containers."""
    wish = Wish("llama-w8a8", PROCESSED)
    server = cast.offering(wish)
    elsewhere = replace(wish, environment={"SIM_HOST_ID": "other"})
    client = cast.client(elsewhere, server.port).up()
    cast.compare(server.actor, client)


def test_two_instances_on_one_device_of_one_host(cast: Cast) -> None:
    """Server and client on device 0 of one host, TRANSPORT tcp."""
    wish = Wish("llama-w8a8", {**PROCESSED, "TRANSPORT": "tcp"})
    server = cast.offering(wish)
    client = cast.client(wish, server.port).up()
    cast.compare(server.actor, client)


def test_hccl_refuses_one_device_of_one_host(cast: Cast) -> None:
    """Server and client on device 0 of one host, which HCCL refuses: over tcp."""
    wish = Wish("llama-w8a8", PROCESSED)
    server = cast.offering(wish)
    client = cast.client(wish, server.port).up()
    assert client.said("netloader.transport=hccl")
    cast.compare(server.actor, client)


def test_tensor_parallel(cast: Cast) -> None:
    """Tensor parallel 2, W8A8, on four devices."""
    ranks_paired(cast, Wish("llama-w8a8", PROCESSED, TENSOR_PARALLEL), tensor_rank)


def test_tensor_parallel_experts(cast: Cast) -> None:
    """Tensor parallel 2 with expert parallel, MoE W8A8."""
    options = {**TENSOR_PARALLEL, **EXPERTS}
    ranks_paired(cast, Wish("moe-w8a8", PROCESSED, options), tensor_rank)


def test_data_parallel(cast: Cast) -> None:
    """Data parallel 2 with expert parallel, MoE W8A8."""
    place = placed_replica if cast.release.name == "0.23" else replica
    ranks_paired(cast, Wish("moe-w8a8", PROCESSED, EXPERTS), place)


def test_a_client_serves(cast: Cast) -> None:
    """A client of a client."""
    wish = Wish("moe-w8a8", PROCESSED)
    first = cast.offering(wish)
    second = cast.chained(replace(wish, device=1), first.port)
    third = cast.client(replace(wish, device=2), second.port).up()
    cast.compare(first.actor, third)
