"""What torch_npu's own operators compute, in plain torch: those of eager dense models.

`arithmetic.HostArithmetic` calls these on host copies. They follow torch_npu's documentation of the
operators; results are rounded as float32 arithmetic rounds them, not as a device would.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

WIDTHS = {None: torch.int8, 5: torch.float16, 15: torch.bfloat16}
"""Dtypes by the numbers that operators take for them."""

LOWER_TRIANGLE = 3
"""The sparse mode of attention in which a query sees the keys up to its own."""


def rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The normalised input, and the reciprocal of its root mean square."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * scale * gamma.float()).to(x.dtype), scale


def add_rms_norm(
    first: Tensor, second: Tensor, gamma: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a sum, which comes last."""
    total = first + second
    return (*rms_norm(total, gamma, epsilon), total)


def add_rms_norm_bias(
    first: Tensor, second: Tensor, gamma: Tensor, bias: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with a bias, if there is one: a custom kernel of vllm-ascend."""
    normed, scale, total = add_rms_norm(first, second, gamma, epsilon)
    return normed if bias is None else normed + bias, scale, total


def add_product(rows: Tensor, weight: Tensor, total: Tensor) -> None:
    """Add `rows.T @ weight` to a float32 tensor."""
    total += rows.float().T @ weight.float()


def swiglu(x: Tensor, dim: int = -1) -> Tensor:
    """One half gates the other."""
    gate, up = x.float().chunk(2, dim)
    return (silu(gate) * up).to(x.dtype)


def rotate(
    positions: Tensor, query: Tensor, key: Tensor, size: int, table: Tensor, neox: bool
) -> None:
    """Rotate query and key in place, by the cosines and sines of their positions."""
    cosines, sines = table[positions.flatten().long()].float().unsqueeze(1).chunk(2, -1)
    width = 2 * cosines.shape[-1]
    for tensor in (query, key):
        heads = tensor.view(len(tensor), -1, size)[..., :width]
        wide = heads.float()
        one, two = wide.chunk(2, -1) if neox else (wide[..., ::2], wide[..., 1::2])
        turned = (one * cosines - two * sines, two * cosines + one * sines)
        joined = torch.cat(turned, -1) if neox else torch.stack(turned, -1).flatten(-2)
        heads.copy_(joined)


def rotated(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    table: Tensor,
    size: int,
    *,
    rotary_mode: str = "half",
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """The same, not in place."""
    query, key = query.clone(), key.clone()
    rotate(positions, query, key, size, table, rotary_mode == "half")
    return query, key


def store(
    key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor, **_: Any
) -> None:
    """Write keys and values into the slots of a paged cache; negative ones are padding."""
    used = slots >= 0
    for new, cache in ((key, keys), (value, values)):
        cache.view(-1, *cache.shape[2:])[slots[used].long()] = new[: len(slots)][used]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    actual_seq_lengths: Sequence[int],
    actual_seq_lengths_kv: Sequence[int],
    block_table: Tensor | None = None,
    num_heads: int = 1,
    num_key_value_heads: int = 0,
    scale: float = 1.0,
    sparse_mode: int = 0,
    block_size: int = 0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention of packed sequences; `actual_seq_lengths` and lengths of plain keys add up."""
    result = torch.empty_like(query)
    begin = key_begin = 0
    for number, (end, length) in enumerate(
        zip(actual_seq_lengths, actual_seq_lengths_kv, strict=False)
    ):
        if block_table is None:
            keys, values = key[key_begin:length], value[key_begin:length]
            key_begin = length
        else:
            rows = block_table[number, : -(-length // block_size)].long()
            keys, values = (t[rows].reshape(-1, t.shape[-1])[:length] for t in (key, value))
        causal = sparse_mode == LOWER_TRIANGLE
        groups = num_heads // (num_key_value_heads or num_heads)
        result[begin:end] = _attention(query[begin:end], keys, values, groups, scale, causal)
        begin = end
    return result, torch.empty(0)


def quantize(
    x: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    dtype: object,
    axis: int = 1,
    divide: bool = True,
) -> Tensor:
    """To int8, by scales of the last axis, which are factors or divisors."""
    wide, scales = x.float(), scales.float()
    wide = wide / scales if divide else wide * scales
    return (wide + zero_points.float()).round().clamp(-128, 127).to(torch.int8)


def quantize_rows(x: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """To int8 with the scale that each row needs, and these scales."""
    wide = x.float()
    scales = wide.abs().amax(-1) / 127
    rounded = (wide / scales.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)).round()
    return rounded.to(torch.int8), scales


def multiply_int8(
    rows: Tensor,
    weight: Tensor,
    scale: Tensor,
    *,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | None = None,
    **_: Any,
) -> Tensor:
    """An int8 product, exact, and scaled; an int32 bias is added before, another one after."""
    total = rows.double() @ weight.double()
    whole = bias is not None and bias.dtype == torch.int32
    if bias is not None and whole:
        total += bias
    total *= scale.double()
    if pertoken_scale is not None:
        total *= pertoken_scale.double().unsqueeze(-1)
    if bias is not None and not whole:
        total += bias
    return total.to(WIDTHS[output_dtype])


def _attention(
    query: Tensor, keys: Tensor, values: Tensor, groups: int, scale: float, causal: bool
) -> Tensor:
    """Of one sequence; query [Q, heads, size], keys and values [K, key heads * size]."""
    size = query.shape[-1]
    wide = [
        t.reshape(len(t), -1, size).float().repeat_interleave(groups, 1) for t in (keys, values)
    ]
    weights = torch.einsum("qhd,khd->hqk", query.float(), wide[0]) * scale
    if causal:
        queries, seen = weights.shape[1:]
        visible = torch.ones(queries, seen, dtype=torch.bool).tril(seen - queries)
        weights = weights.masked_fill(~visible, float("-inf"))
    return torch.einsum("hqk,khd->qhd", weights.softmax(-1), wide[1]).to(query.dtype)


def attend_paged(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: Tensor,
    context_lens: Tensor,
    out: Tensor,
    **_: Any,
) -> None:
    """Attention of one new token of each sequence over a paged cache."""
    count = len(context_lens)
    found, _unused = attend(
        query[:count],
        key_cache.flatten(2),
        value_cache.flatten(2),
        actual_seq_lengths=range(1, count + 1),
        actual_seq_lengths_kv=context_lens.tolist(),
        block_table=block_table,
        num_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        scale=scale_value,
        block_size=key_cache.shape[1],
    )
    out[:count] = found.view_as(out[:count])


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "npu::npu_rms_norm": rms_norm,
    "npu::npu_add_rms_norm": add_rms_norm,
    "_C_ascend::npu_add_rms_norm_bias": add_rms_norm_bias,
    "npu::npu_swiglu": swiglu,
    "npu::npu_fused_infer_attention_score": attend,
    "npu::npu_mrope": rotated,
    "npu::npu_scatter_pa_kv_cache": store,
    "npu::npu_quantize": quantize,
    "npu::npu_dynamic_quant": quantize_rows,
    "npu::npu_quant_matmul": multiply_int8,
    "atb::_npu_matmul_add_fp32": add_product,
    "atb::_npu_rotary_embedding": rotate,
    "atb::_npu_reshape_and_cache": store,
    "atb::_npu_paged_attention": attend_paged,
}
