"""Whole engines of vllm-ascend: the second has no weight files and answers as the first."""

from dataclasses import replace

import pytest

from tests.ascend.cast import Cast, Wish
from tests.ascend.models import is_quantized

PROMPTS = [[5, 6, 7, 8], [100, 200, 300]]
TOKENS = 6
MODELS = {
    "bf16": Wish("llama", kind="engine"),
    "W8A8": Wish("llama-w8a8", {"LAYOUT": "processed"}, kind="engine"),
}


@pytest.mark.parametrize("wish", MODELS.values(), ids=MODELS.keys())
def test_generate(cast: Cast, wish: Wish) -> None:
    """Two engines: the same tensors and the same greedy tokens."""
    server = cast.server(wish)
    server.actor.await_line("netloader.server.offered")  # of itself, when it was warm
    elsewhere = replace(wish, environment={"SIM_HOST_ID": "other"})
    client = cast.client(elsewhere, server.port).up()
    cast.compare(server.actor, client)
    answers = [actor.tell("generate", PROMPTS, TOKENS) for actor in (server.actor, client)]
    assert answers[0] == answers[1]
    assert all(len(tokens) == TOKENS for tokens in answers[0])
    if not is_quantized(wish.model):  # transformers cannot read what ModelSlim writes
        assert answers[0] == server.actor.tell("by_transformers", PROMPTS, TOKENS)
    cast.seen.append(f"greedy tokens equal: {answers[0]}")
