"""Weights in the forms in which vllm-ascend keeps them, from a server to a client without files."""

import pytest

from tests.ascend.topology import Cast, WorkerSpec, paired

PROCESSED = {"LAYOUT": "processed"}
RAW = {"LAYOUT": "raw", "WEIGHT_CACHE": "dram"}
"""The originals of what is replaced after loading: with 0.30, scales are, too."""

DRAFT = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}}

PAIRS = {
    "bf16, raw": WorkerSpec("llama"),
    "bf16, processed": WorkerSpec("llama", PROCESSED),
    "bf16, weight_nz_mode 2, processed": WorkerSpec(
        "llama", PROCESSED, {"additional_config": {"weight_nz_mode": 2}}
    ),
    "bf16, weight_nz_mode 2, raw": WorkerSpec(
        "llama", RAW, {"additional_config": {"weight_nz_mode": 2}}
    ),
    "W8A8 static and dynamic, processed": WorkerSpec("llama-w8a8", PROCESSED),
    "W8A8, raw, INT8_CACHE dram": WorkerSpec("llama-w8a8", {**RAW, "INT8_CACHE": "dram"}),
    "W8A8, raw, INT8_CACHE hbm": WorkerSpec("llama-w8a8", {**RAW, "INT8_CACHE": "hbm"}),
    "MoE bf16": WorkerSpec("moe"),
    "MoE W8A8, processed": WorkerSpec("moe-w8a8", PROCESSED),
    "MoE W4A8, processed": WorkerSpec("moe-w4a8", PROCESSED),
    "MLA and MoE bf16 (DeepSeek-V2), processed": WorkerSpec("deepseek-v2", PROCESSED),
    "MLA and MoE W8A8 (DeepSeek-V3), processed": WorkerSpec("deepseek-v3-w8a8", PROCESSED),
}


@pytest.mark.parametrize("wanted", PAIRS.values(), ids=PAIRS.keys())
def test_pair(cast: Cast, wanted: WorkerSpec) -> None:
    """All tensors of server and client are equal."""
    server, client = paired(cast, wanted)
    assert client.said("netloader.loader.received")
    assert server.said("netloader.transport=hccl")


@pytest.mark.parametrize("extra", [RAW, PROCESSED], ids=["raw", "processed"])
def test_draft(cast: Cast, extra: dict[str, str]) -> None:
    """All tensors of target and draft (DeepSeek-V3 with its MTP layer), bf16."""
    _, client = paired(cast, WorkerSpec("deepseek-v3-mtp", extra, DRAFT))
    received = client.said("netloader.loader.received")
    roles = [role for line in received for role in ("target", "draft") if f"role={role}" in line]
    assert roles == ["target", "draft"]
    assert any(path.startswith("draft ") for path in client.tell("held"))


def test_originals_are_gone(cast: Cast) -> None:
    """W8A8, raw, without INT8_CACHE: refused, with the remedy."""
    server = cast.server(WorkerSpec("llama-w8a8", {"LAYOUT": "raw"}))
    server.actor.tell("offer")
    line = server.actor.await_line("netloader.server.refused")
    assert "set INT8_CACHE to dram" in line
    assert not server.actor.said("netloader.server.offered")
