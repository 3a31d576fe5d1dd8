"""Whole engines of vllm-ascend: the second has no weight files and answers as the first."""

from dataclasses import replace

import pytest

from tests.ascend.models import is_quantized
from tests.ascend.topology import Cast, WorkerSpec

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
