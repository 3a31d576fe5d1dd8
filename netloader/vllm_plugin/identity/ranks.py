"""How log records name a rank."""

import torch


def named(rank: int) -> dict[str, int]:
    """The fields that say in every record which rank of how many this is."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return {"netloader.rank": rank, "netloader.ranks": max(world, rank + 1)}
