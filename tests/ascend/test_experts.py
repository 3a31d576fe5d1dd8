"""Experts at other places than the usual ones, and experts that move."""

import json
import re
from pathlib import Path

import pytest

from tests.ascend.topology import ActorError, Cast, WorkerSpec, instance, ranks_paired, tensor_rank
from tests.support.zoo.checkpoint import LAYERS

PROCESSED = {"LAYOUT": "processed"}
SPREAD = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
MOVES = {"DYNAMIC_EPLB": "true"}
MAPS = ([[0, 2], [1, 3]], [[3, 1], [2, 0]])
"""Which experts are on which device."""


def _map(path: Path, places: list[list[int]]) -> Path:
    devices = [
        {"device_id": number, "device_expert": experts} for number, experts in enumerate(places)
    ]
    layers = [
        {"layer_id": layer, "device_count": len(places), "device_list": devices}
        for layer in range(LAYERS)
    ]
    path.write_text(json.dumps({"moe_layer_count": LAYERS, "layer_list": layers}))
    return path


def _spec(path: Path) -> WorkerSpec:
    placed = {"additional_config": {"eplb_config": {"expert_map_path": str(path)}}}
    return WorkerSpec("moe-w8a8", PROCESSED, {**SPREAD, **placed})


def test_a_map_of_experts(cast: Cast, tmp_path: Path) -> None:
    """Tensor parallel 2, experts placed by a file (expert_map_path), the same on both sides."""
    ranks_paired(cast, _spec(_map(tmp_path / "map.json", MAPS[0])), tensor_rank)


def test_another_map_of_experts(cast: Cast, tmp_path: Path) -> None:
    """Tensor parallel 2, experts placed by another file: refused, the field named."""
    specs = [_spec(_map(tmp_path / f"map{n}.json", places)) for n, places in enumerate(MAPS)]
    with pytest.raises(ActorError, match="expert_map"):
        ranks_paired(cast, specs[0], tensor_rank, specs[1])


def test_experts_that_move(cast: Cast) -> None:
    """Dynamic EPLB: not served, and why."""
    moving = {"additional_config": {"eplb_config": {"dynamic_eplb": True}}}
    for server in instance(cast, WorkerSpec("moe-w8a8", PROCESSED, {**SPREAD, **moving}), MOVES):
        server.tell("offer")
        assert re.search("experts change places", server.await_line("netloader.server.refused"))
        assert not server.said("netloader.server.offered")
