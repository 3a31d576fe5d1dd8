"""A host that has process groups of its own keeps them, as they are."""

from tests.ascend_sim.probe import run

PROGRAM = """
    from tests.npu.simulator import torch_npu
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed import HashStore
    from netloader.io import ClientOptions, ServerOptions, fill, serve

    def model(value, device):
        module = nn.Module()
        module.register_buffer("w", torch.full((3 << 20,), value, dtype=torch.uint8, device=device))
        return module

    def works():
        tensor = torch.ones(8, device="npu:0")
        dist.all_reduce(tensor)
        torch.npu.synchronize()
        return tensor.cpu().tolist() == [1.0] * 8

    torch.npu.set_device(0)
    dist.init_process_group("hccl", store=HashStore(), rank=0, world_size=1)
    world, groups = dist.group.WORLD, len(dist.distributed_c10d._world.pg_map)
    print("host before", works())

    with serve(model(1, "npu:0"), {}, options=ServerOptions(transports=("hccl",))) as server:
        for _ in range(3):
            outcome = fill(
                model(2, "npu:1"), [server.endpoint], {}, ClientOptions(transports=("hccl",))
            )
            print("served", outcome.ok)

    print("host after", works(), dist.group.WORLD is world, dist.get_world_size() == 1)
    print("groups", len(dist.distributed_c10d._world.pg_map) == groups)
    dist.destroy_process_group()
"""


def test_a_host_with_a_default_group_keeps_it() -> None:
    ran = run(PROGRAM, TASK_QUEUE_ENABLE="0")

    said = [line for line in ran.said if "Warning" not in line]
    assert said == [
        "host before True",
        *["served True"] * 3,
        "host after True True True",
        "groups True",
    ], ran.errors[-4000:]
