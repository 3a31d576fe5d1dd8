"""A whole engine of vllm-ascend: scheduler, model runner, warm-up, eager generation."""

from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams
from vllm_ascend.worker import block_table

from tests.ascend.arithmetic import HostArithmetic
from tests.ascend.holdings import held_by
from tests.ascend.operators import OPERATORS
from tests.ascend.talk import converse

ADD_NORM = "(Tensor a, Tensor b, Tensor gamma, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)"
"""The one custom kernel of 0.30 that an eager Llama calls; the name has no kernel here."""

SMALL: Mapping[str, Any] = {
    "max_num_seqs": 4,
    "max_num_batched_tokens": 128,
    "kv_cache_memory_bytes": 64 << 20,
}


class Engine:
    """One engine of one rank, in this process."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.folder = spec["engine"]["model"]
        block_table.BlockTable.compute_slot_mapping = slots_of
        torch.library.define("_C_ascend::npu_add_rms_norm_bias", ADD_NORM)
        with HostArithmetic(dict(OPERATORS)):
            self.inner = LLM(**{**SMALL, **spec["engine"]})

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Greedy tokens."""
        params = SamplingParams(temperature=0, max_tokens=tokens, detokenize=False)
        inputs: Any = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        with HostArithmetic(dict(OPERATORS)):
            outputs = self.inner.generate(inputs, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def by_transformers(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Greedy tokens of the same files, by transformers on the CPU, in float32."""
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        rows = [torch.tensor([list(prompt)]) for prompt in prompts]
        plain = {"do_sample": False, "min_new_tokens": tokens, "max_new_tokens": tokens}
        return [model.generate(row, **plain)[0, row.shape[1] :].tolist() for row in rows]

    def held(self) -> dict[str, str]:
        """All tensors."""
        found: list[dict[str, str]] = self.inner.apply_model(held_by)
        return found[0]


def slots_of(
    self: Any, num_reqs: int, query_start_loc: torch.Tensor, positions: torch.Tensor
) -> None:
    """vllm-ascend's Triton kernel `compute_slot_mapping`: where tokens are in the paged cache."""
    starts = query_start_loc.cpu()[: num_reqs + 1].long()
    table, at = self.block_table.gpu.cpu(), positions.cpu().long()
    slots = torch.full_like(self.slot_mapping.gpu, block_table.PAD_SLOT_ID, device="cpu")
    for number in range(num_reqs):
        part = slice(starts[number], starts[number + 1])
        blocks = table[number, at[part] // self.block_size].long()
        slots[part] = (blocks * self.block_size + at[part] % self.block_size).to(slots.dtype)
    self.slot_mapping.gpu.copy_(slots)


def attend(connection: Connection, spec: Mapping[str, Any]) -> None:
    """Be an engine until the other end hangs up."""
    converse(connection, lambda: Engine(spec))
