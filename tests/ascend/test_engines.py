"""Whole engines of vllm-ascend: the second has no weight files and answers as the first."""

from dataclasses import replace

import pytest

from netloader.config import Endpoint
from netloader.fsm.manifest import Manifest
from netloader.fsm.messages import Description
from netloader.io.describe import ask_status
from netloader.io.options import ClientOptions
from tests.ascend.models import is_quantized
from tests.ascend.topology import PATIENCE_S, Cast, WorkerSpec
from tests.unit.io.helpers import eventually

PROMPTS = [[5, 6, 7, 8], [100, 200, 300]]
TOKENS = 6
MODELS = {
    "bf16": WorkerSpec("llama", kind="engine"),
    "W8A8": WorkerSpec("llama-w8a8", {"LAYOUT": "processed"}, kind="engine"),
}


@pytest.mark.parametrize("wanted", MODELS.values(), ids=MODELS.keys())
def test_generate(cast: Cast, wanted: WorkerSpec) -> None:
    """Two engines: the same tensors and the same greedy tokens."""
    server = cast.server(wanted)
    server.actor.await_line("netloader.server.offered")  # of itself, when it was warm
    elsewhere = replace(wanted, environment={"SIM_HOST_ID": "other"})
    client = cast.client(elsewhere, server.port).up()
    cast.compare(server.actor, client)
    answers = [actor.tell("generate", PROMPTS, TOKENS) for actor in (server.actor, client)]
    assert answers[0] == answers[1]
    assert all(len(tokens) == TOKENS for tokens in answers[0])
    if not is_quantized(wanted.model):  # transformers cannot read what ModelSlim writes
        assert answers[0] == server.actor.tell("by_transformers", PROMPTS, TOKENS)
    cast.seen.append(f"greedy tokens equal: {answers[0]}")


MEASURES = {"kv_cache_memory_bytes": None, "gpu_memory_utilization": 0.004}
"""Of the 64 GiB of a simulated device."""
MEASURED = WorkerSpec("llama", {"CACHES": True}, MEASURES, kind="engine")
KEEPS = {"WEIGHT_CACHE": "hbm"}


def test_size_of_the_kv_cache(cast: Cast) -> None:
    """Engines take over the size of the KV cache, but one that keeps more on the device."""
    server = cast.server(MEASURED)
    assert eventually(lambda: offers_hints(server.port), PATIENCE_S)
    elsewhere = replace(MEASURED, device=1, environment={"SIM_HOST_ID": "other"})
    client = cast.client(elsewhere, server.port).up()
    taken = client.said("netloader.caches.taken")
    assert any("bytes for the KV cache, not measured here" in line for line in taken)
    other = cast.client(replace(elsewhere, extra={**elsewhere.extra, **KEEPS}), server.port).up()
    (refused,) = other.said("netloader.caches.refused")
    assert "WEIGHT_CACHE: mine is 'hbm', theirs is 'no'" in refused


def offers_hints(port: int) -> bool:
    """Whether an engine tells what it has measured: it is warm then."""
    at, asked = Endpoint("127.0.0.1", port), {"role": "hints"}
    return isinstance(ask_status(at, asked, Manifest(()), ClientOptions()), Description)
