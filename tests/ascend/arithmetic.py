"""Arithmetic for the simulated NPU. It has no kernels of its own; torch computes on the host.

A `HostArithmetic` sees every operator of the thread that entered it. What creates, copies or views
memory goes to torch_npu unchanged. Everything else is computed by torch on host copies of its
arguments, and the results are copied to the device. So an operator costs two copies, and every
operator that torch has is available.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

MOVES = (
    "_copy_from _copy_from_and_resize _local_scalar_dense _pin_memory _to_copy alias clone copy_",
    "detach empty empty_like empty_strided equal fill_ is_pinned lift_fresh new_empty",
    "new_empty_strided ones record_stream resize_ set_ zero_ zeros",
)
MEMORY = frozenset(f"aten::{name}" for line in MOVES for name in line.split())
"""Operators that torch_npu can do on the simulator: they move memory and do not compute."""

COMPOSED = ("vllm", "vllm_ascend")
"""Namespaces of operators that are Python functions of other operators."""

Function = Callable[..., Any]


class HostArithmetic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, operators on NPU tensors are computed on the host."""

    def __init__(self, replaced: dict[str, Function] | None = None) -> None:
        """`replaced`: what operators of torch_npu compute, in plain torch, by qualified name."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.replaced = replaced or {}
        self.computed: Counter[str] = Counter()
        """How often each operator was computed on the host."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in self.replaced:
            return self._on_host(name, self.replaced[name], func, args, kwargs)
        device = _npu_of((args, kwargs))
        if device is None or func.is_view or name in MEMORY:
            return func(*args, **kwargs)
        if func.namespace in COMPOSED:
            with self:
                key = torch._C.DispatchKey.PrivateUse1
                return func._op_dk(key, *args, **kwargs)
        if func.namespace not in ("aten", "prims"):
            return func(*args, **kwargs)
        return self._on_host(name, func, func, args, kwargs)

    def _on_host(self, name: str, function: Function, func: Any, args: Any, kwargs: Any) -> Any:
        self.computed[name] += 1
        device = _npu_of((args, kwargs)) or torch.device(
            "npu", torch.accelerator.current_device_index()
        )
        pairs: dict[int, tuple[Tensor, Tensor]] = {}

        def down(value: Any) -> Any:
            if isinstance(value, Tensor) and value.device.type == "npu":
                if id(value) not in pairs:
                    pairs[id(value)] = (value, value.detach().cpu())
                return pairs[id(value)][1]
            if isinstance(value, torch.device) and value.type == "npu":
                return torch.device("cpu")
            if isinstance(value, torch.Generator) and value.device.type == "npu":
                return torch.Generator().manual_seed(value.initial_seed())
            return value

        def up(value: Any) -> Any:
            if isinstance(value, Tensor):
                given = [tensor for tensor, copy in pairs.values() if copy is value]
                return given[0] if given else value.to(device)
            return value

        its_args, its_kwargs = tree_map(down, (args, kwargs))
        result = function(*its_args, **its_kwargs)
        if func._schema.is_mutable:
            for tensor, copy in pairs.values():
                tensor.copy_(copy)
        return tree_map(up, result)


def _npu_of(arguments: Any) -> torch.device | None:
    """The NPU that a call is about, None when it is about none."""
    for leaf in tree_leaves(arguments):
        device = leaf.device if isinstance(leaf, Tensor) else leaf
        if isinstance(device, torch.device) and device.type == "npu":
            return device
    return None
