"""Read what a load has to know of its model from vLLM's configuration, once."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from vllm.config import ModelConfig, ParallelConfig, VllmConfig
from vllm.distributed import (
    get_pcp_group,
    get_pp_group,
    get_tensor_model_parallel_rank,
    parallel_state,
)

from netloader.fsm.identity import Identity
from netloader.vllm_plugin.identity import resolved
from netloader.vllm_plugin.identity.files import Files
from netloader.vllm_plugin.identity.identity import DRAFT, TARGET, model_name
from netloader.vllm_plugin.identity.local_model import Checkpoint, LocalModel
from netloader.vllm_plugin.patches import compat


def read_config(vllm_config: VllmConfig, model_config: ModelConfig, name: str | None) -> LocalModel:
    """Read vLLM's configuration before the model is built; `name` is the operator's MODEL.

    vLLM writes into its configurations while it builds a model. A draft changes its own, and
    attention layers replace `auto` by the dtype of the cache that the checkpoint asks for. A server
    has built its model when a client asks, and a client has not.
    """
    parallel = vllm_config.parallel_config
    return LocalModel(
        role=_role_of(model_config),
        rank=rank(parallel),
        path=str(model_config.model),
        device_type=torch.device(vllm_config.device_config.device).type,
        early=_known_early(vllm_config, model_config, name),
        kv_role=_kv_role(vllm_config),
        overridden=tuple(resolved.overridden(getattr(model_config, "hf_overrides", None))),
        unsteady=_unsteady(vllm_config),
        worker_classes=(parallel.worker_cls, parallel.worker_extension_cls),
        files=Files.of(model_config),
        served_name=_served_name(model_config),
        checkpoint=Checkpoint(model_config),
    )


def _served_name(model_config: ModelConfig) -> str:
    """The first of the names that vLLM answers to."""
    names = getattr(model_config, "served_model_name", None)
    return str(names[0] if isinstance(names, list) and names else names or model_config.model)


def _role_of(model_config: ModelConfig) -> str:
    """Draft models are known by their config; prefix and load config are the target's."""
    return DRAFT if model_config.runner_type == "draft" else TARGET


def rank(parallel: ParallelConfig) -> int:
    """The worker's rank among all replicas of the instance: unique on a host, as its port must be.

    It is the `torch.distributed` global rank. Only data parallel replicas of a dense model, each of
    which vLLM gives a world of its own, are counted on from one to the next.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return int(parallel.data_parallel_index * parallel.world_size)
    own = torch.distributed.get_world_size() == parallel.world_size
    replica = parallel.data_parallel_index if own else 0
    return int(replica * parallel.world_size + torch.distributed.get_rank())


def _known_early(vllm_config: VllmConfig, model_config: ModelConfig, name: str | None) -> Identity:
    """The fields that are known before the model is built."""
    parallel = vllm_config.parallel_config
    role = _role_of(model_config)
    return Identity(
        {
            "model": model_name(str(model_config.model), name),
            "role": role,
            "dtype": str(model_config.dtype).removeprefix("torch."),
            **resolved.hard(model_config),
            "architecture": ",".join(model_config.hf_config.architectures or []),
            "quantization": str(model_config.quantization),
            "tensor_parallel": f"{_tp_rank()} of {parallel.tensor_parallel_size}",
            "pipeline_parallel": f"{_pp_rank()} of {parallel.pipeline_parallel_size}",
            "data_parallel": f"{parallel.data_parallel_rank} of {parallel.data_parallel_size}",
            "context_parallel": _context(parallel),
            "expert_parallel": _experts(parallel),
            "redundant_experts": str(parallel.eplb_config.num_redundant_experts),
            "expert_map": _expert_map(vllm_config),
            "ascend": _ascend(vllm_config),
            "draft_lm_head": _draft_lm_head(vllm_config, role),
            "kv_cache_dtype": str(vllm_config.cache_config.cache_dtype),
            "device": str(torch.device(vllm_config.device_config.device).type),
        }
    )


def _kv_role(vllm_config: VllmConfig) -> str:
    """The part this instance has in the transfer of KV caches: some kernels differ with it."""
    return str(getattr(getattr(vllm_config, "kv_transfer_config", None), "kv_role", None))


def _unsteady(vllm_config: VllmConfig) -> tuple[str, str]:
    """Why weights change while this instance runs, and what would prevent it; empty if they do not.

    Such an instance does not serve.
    """
    ascend = _ascend_eplb(vllm_config)
    moved = ascend.get("dynamic_eplb") or ascend.get("expert_map_record_path")
    if vllm_config.parallel_config.enable_eplb or moved:
        return (
            "experts change places while this instance runs (EPLB), and so do its weights",
            "turn dynamic EPLB off to serve; an expert map in a file is fine",
        )
    if _additional(vllm_config).get("layer_sharding"):
        return (
            "layers are refilled while this instance runs (layer_sharding)",
            "turn layer_sharding off in --additional-config to serve",
        )
    return "", ""


def _context(parallel: ParallelConfig) -> str:
    prefill, decode = parallel.prefill_context_parallel_size, parallel.decode_context_parallel_size
    return f"prefill {_pcp_rank()} of {prefill}, decode {decode}"


def _experts(parallel: ParallelConfig) -> str:
    """Which experts this rank has: with expert parallelism they are assigned by these numbers."""
    if not parallel.enable_expert_parallel:
        return "off"
    size = parallel.tensor_parallel_size * parallel.prefill_context_parallel_size
    prefill = _pcp_rank() * parallel.tensor_parallel_size
    mine = _tp_rank() + prefill + size * parallel.data_parallel_rank
    return f"{mine} of {size * parallel.data_parallel_size}, {parallel.expert_placement_strategy}"


def _additional(vllm_config: VllmConfig) -> Mapping[str, Any]:
    """The settings of a vendor's plugin, from `--additional-config`."""
    more = vllm_config.additional_config
    return more if isinstance(more, Mapping) else {}


def _ascend_eplb(vllm_config: VllmConfig) -> Mapping[str, Any]:
    """The settings of vllm-ascend for balanced experts."""
    given = _additional(vllm_config).get("eplb_config")
    return given if isinstance(given, Mapping) else {}


def _ascend(vllm_config: VllmConfig) -> str:
    """The settings of vllm-ascend that place weights, as JSON: only those that are not defaults."""
    more = _additional(vllm_config)
    finer = more.get("finegrained_tp_config")
    told = {
        "mix_placement": more.get("mix_placement"),
        "num_redundant_experts": _ascend_eplb(vllm_config).get("num_redundant_experts"),
        "finegrained_tp_config": {k: v for k, v in finer.items() if v}
        if isinstance(finer, Mapping)
        else finer,
    }
    return json.dumps({k: v for k, v in told.items() if v}, sort_keys=True, default=str)


def _expert_map(vllm_config: VllmConfig) -> str:
    """Where vllm-ascend puts experts, if a file says so: SHA-256 (first 16 hex digits) of it."""
    file = _ascend_eplb(vllm_config).get("expert_map_path")
    if not file:
        return "none"
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    except OSError:  # vllm-ascend will say so, if it wants the file
        return f"unreadable: {file}"


def _draft_lm_head(vllm_config: VllmConfig, role: str) -> str:
    return compat.draft_lm_head_quantization(vllm_config) if role == DRAFT else "None"


def _tp_rank() -> int:
    return (
        int(get_tensor_model_parallel_rank())
        if parallel_state.model_parallel_is_initialized()
        else 0
    )


def _pcp_rank() -> int:
    ready = parallel_state.model_parallel_is_initialized()
    return int(get_pcp_group().rank_in_group) if ready else 0


def _pp_rank() -> int:
    ready = parallel_state.model_parallel_is_initialized()
    return int(get_pp_group().rank_in_group) if ready else 0
