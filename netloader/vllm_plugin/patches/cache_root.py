"""What vLLM keeps below its cache root for one model, and the names under which it looks for it.

vLLM's keys contain the path of the model's folder, which differs from host to host. So what travels
is named by what is left of a key without that, and each side computes the name of its own folder.
"""

import copy
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from torch import nn
from vllm import envs
from vllm.config import ModelConfig, VllmConfig
from vllm.platforms import current_platform

from netloader.files.hints import INSPECTIONS

COMPILED: Final = "torch_compile_cache"
AHEAD: Final = "torch_aot_compile"
"""The folder of code that vLLM compiles ahead of time (`VLLM_USE_AOT_COMPILE`)."""
OURS: Final = "netloader"
"""The folder of code that vLLM has torch keep, which is else in a folder for all models."""
INDUCTOR: Final = "inductor"
"""The key of that folder."""
TORCH_KEEPS: Final = "TORCHINDUCTOR_CACHE_DIR"
ALLOCATING: Final = ("PYTORCH_", "HCCL_BUFFSIZE", "NCCL_BUFFSIZE", "VLLM_ASCEND_")
"""How variables begin that decide what libraries take of a device's memory."""
SECRET: Final = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL|^S3_|^AWS_", re.IGNORECASE)
"""Names of variables that may hold secrets: even a digest of a short secret tells it."""
ELSEWHERE: Final = ("target_model_config", "target_parallel_config", "engine_id", "kv_ip")
"""Options of parts that are compared anyhow, or that name an instance or a host."""


def root() -> Path:
    """The folder for all of it."""
    return Path(envs.VLLM_CACHE_ROOT)


def conditions(vllm_config: VllmConfig) -> dict[str, str]:
    """What enters vLLM's keys, part by part, without the path of the model's folder."""
    capability = current_platform.get_device_capability()
    name = current_platform.get_device_name()
    return {
        "device_name": f"{name} {capability}" if capability else str(name),
        "environment": _environment(),
        **dict(_sections(vllm_config)),
    }


def _environment() -> str:
    """The variables that enter vLLM's keys and are set."""
    return _variables(name for name in envs.compile_factors() if name in os.environ)


def _variables(names: Iterable[str]) -> str:
    """Variables of the environment with digests of their values, without those of secrets.

    A refusal names them, and it reaches logs and peers.
    """
    told = sorted(name for name in names if not SECRET.search(name))
    return " ".join(f"{name}={_text(os.environ[name])}" for name in told)


def _sections(vllm_config: VllmConfig) -> Iterator[tuple[str, str]]:
    """The hash that vLLM computes of each part of its configuration."""
    for name, part in sorted(vars(vllm_config).items()):
        if hasattr(part, "compute_hash"):
            yield f"vllm.{name}", _hash(part)


def _hash(part: Any) -> str:
    if isinstance(part, ModelConfig):
        part = copy.copy(part)  # the same, but for its path
        vars(part)["model"] = ""
    return str(part.compute_hash())[:16]


def sizing(vllm_config: VllmConfig) -> dict[str, str]:
    """What else decides how many bytes an engine finds for its KV cache.

    vLLM's hashes are of the graph of a computation, and leave out options that only take memory.
    Of some parts these are a few; of others every option counts, whatever vLLM adds to them.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    few = {
        "gpu_memory_utilization": vllm_config.cache_config.gpu_memory_utilization,
        "max_model_len": model.max_model_len,
        "enforce_eager": model.enforce_eager,
        "data_parallel_size_local": parallel.data_parallel_size_local,
        "disable_custom_all_reduce": parallel.disable_custom_all_reduce,
        "api_processes": getattr(parallel, "_api_process_count", 1),
        "additional_config": vllm_config.additional_config,
    }
    every = {
        "scheduler": vllm_config.scheduler_config,
        "multimodal": model.multimodal_config,
        "lora": vllm_config.lora_config,
        "speculative": vllm_config.speculative_config,
        "kv_transfer": vllm_config.kv_transfer_config,
        "ec_transfer": vllm_config.ec_transfer_config,
    }
    told = {name: _text(value) for name, value in few.items()}
    allocating = _variables(n for n in os.environ if n.startswith(ALLOCATING))
    return {**told, "allocating": allocating, **dict(_options(every))}


def _options(parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every option of parts that there are."""
    for part, options in parts.items():
        for name, value in vars(options).items() if options is not None else ():
            if name not in ELSEWHERE:
                yield f"{part}.{name}", _text(value)


def _text(value: Any) -> str:
    """A number or a switch as it is; of all else, which may hold a secret or a path, a digest."""
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, Enum):
        return value.name
    plain = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def _plain(value: Any) -> object:
    """What JSON cannot write: a part of the configuration, a set, or a thing of some class."""
    if hasattr(value, "compute_hash"):
        return _hash(value)
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return vars(value) if is_dataclass(value) else type(value).__qualname__


def inspections(model_config: ModelConfig) -> dict[str, Path]:
    """The files in which vLLM keeps what it found in the classes of a model, by name."""
    names = [*(model_config.hf_config.architectures or ()), model_config.architecture]
    known = getattr(model_config.registry, "models", {})
    files = (_inspection(known[name]) for name in names if name in known)
    return {f"{INSPECTIONS}/{file.name}": file for file in files if file and file.is_file()}


def _inspection(registered: Any) -> Path | None:
    """Only classes that vLLM imports when they are used have such a file."""
    named = getattr(registered, "_get_cache_filename", None)
    return root() / INSPECTIONS / named() if named else None


def compiled(model: nn.Module, vllm_config: VllmConfig, fingerprint: str) -> Mapping[str, Path]:
    """The folders where vLLM keeps what it compiles for a model, by keys that hosts have in common.

    Where vLLM compiles when code is used first, torch keeps the result, in one folder for all
    models; for this process that becomes a folder of this `fingerprint`. Empty: vLLM compiles
    nothing, or keeps it where its name is known only afterwards.

    Raises:
        OSError: that folder cannot be made or written; torch keeps its own then.
    """
    mode = vllm_config.compilation_config.mode
    if str(getattr(mode, "name", mode)) == "NONE":
        return {}
    if getattr(envs, "VLLM_USE_AOT_COMPILE", False):
        return dict(_ahead_of_time(model, vllm_config))
    if str(mode.name) == "VLLM_COMPILE":
        return {}
    folder = root() / COMPILED / OURS / fingerprint
    _keep_in(folder)
    return {INDUCTOR: folder}


def _keep_in(folder: Path) -> None:
    """Have torch keep in a folder what it compiles from now on, with the headers for that.

    vLLM does so for what it compiles ahead of time. torch wants the compiled headers also where it
    has all code that was compiled with them, and keeps them apart.
    """
    from torch._inductor import codecache  # which an engine that compiles nothing can spare

    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()  # else torch could not compile, nor the engine start
    os.environ[TORCH_KEEPS] = str(folder)
    headers = folder / "precompiled_headers"
    for name, path in (("_HEADER_DIR", headers), ("_HEADER_LOCK_DIR", headers / "locks")):
        if hasattr(codecache, name):
            setattr(codecache, name, str(path))


def _ahead_of_time(model: nn.Module, vllm_config: VllmConfig) -> Iterator[tuple[str, Path]]:
    """As `vllm.compilation.decorators`: one folder for each module that is compiled."""
    try:
        from vllm.compilation.caching import aot_compile_hash_factors
        from vllm.compilation.decorators import _model_hash_key
        from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper
    except ImportError:  # another vLLM, which keeps it otherwise
        return
    factors = aot_compile_hash_factors(vllm_config)
    for module in model.modules():
        if isinstance(module, TorchCompileWithNoGuardsWrapper) and not module.do_not_compile:
            key = _model_hash_key(module.forward)
            name = hashlib.sha256(str([*factors, key]).encode()).hexdigest()
            yield key, root() / COMPILED / AHEAD / name


def of_another_rank(folder: str, vllm_config: VllmConfig) -> bool:
    """Whether a folder among compiled code is that of another rank."""
    parallel = vllm_config.parallel_config
    own = f"rank_{parallel.rank}_{parallel.data_parallel_index}"
    return folder.startswith("rank_") and folder != own
