"""What building a model registers outside it, so that a discarded model leaves nothing behind.

Layers register themselves: in vLLM's configs, where a name may come only once, and in registries of
the process. Each of these holds layers, and with them the memory of a discarded model.
"""

import sys
from collections.abc import Iterator
from copy import copy
from typing import Any

from vllm.config import VllmConfig

OF_THE_PROCESS = (
    ("torch._dynamo.convert_frame", "_bytecode_hooks"),  # vLLM: TorchCompileWithNoGuardsWrapper
    ("vllm.model_executor.layers.rotary_embedding", "_ROPE_DICT"),
    ("vllm_ascend.eplb.adaptor.vllm_adaptor", "VllmEplbAdaptor._registered_moe_layers"),
    ("vllm_ascend.ops.layer_shard_linear", "_series_dict"),
    ("vllm_ascend.ops.layer_shard_linear", "_layer_external_dict"),
)
"""Modules, and which dictionary or list in each of them knows the layers of models."""

FIRST_ONE_STAYS = (
    ("vllm_ascend.ops.rotary_embedding", "_cos_sin_cache"),
    ("vllm_ascend.ops.rotary_embedding", "_cos_cache"),
    ("vllm_ascend.ops.rotary_embedding", "_sin_cache"),
)
"""Modules, and which name in each of them is bound to a tensor of the first model, and to no later
one's. A transfer may have written into that tensor. None means that there is no model yet."""

Registry = dict[Any, Any] | list[Any]


class Traces:
    """What was registered before a model was built."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._config = vllm_config
        self._before = {name: copy(registry) for name, registry in _registries(vllm_config)}
        self._bound = {
            (module, name): getattr(sys.modules.get(module), name, None)
            for module, name in FIRST_ONE_STAYS
        }

    def undo(self) -> None:
        """Remove what was registered since."""
        for name, registry in _registries(self._config):
            before = self._before.get(name, ())  # else its module was imported for this model
            registry.clear()
            if isinstance(registry, dict):
                registry.update(before)
            else:
                registry.extend(before)
        for (module, name), value in self._bound.items():
            if hasattr(sys.modules.get(module), name):
                setattr(sys.modules[module], name, value)


def _registries(vllm_config: VllmConfig) -> Iterator[tuple[str, Registry]]:
    compilation = vllm_config.compilation_config
    yield "static_forward_context", compilation.static_forward_context
    yield "static_all_moe_layers", compilation.static_all_moe_layers
    for module, path in OF_THE_PROCESS:
        found: Any = sys.modules.get(module)
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, (dict, list)):
            yield f"{module}.{path}", found
