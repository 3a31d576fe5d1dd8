"""Reload in place from sources: vLLM's own reload does the work with received tensors.

vLLM reloads layer by layer: it takes each layer back to the form it had before loading, has a
checkpoint read into it, post-processes it, and copies the result to where the old weights are. Its
`model.load_weights` expects tensors in the form of a checkpoint, and received ones have the form
after it. So raw weights are received into separate memory, and given to each layer as they are.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from netloader.fsm.manifest import Manifest, TensorSpec
from netloader.io.store.module import Named
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.load.plan import LoadPlan
from netloader.vllm_plugin.patches import compat
from netloader.vllm_plugin.patches.instance import attribute_set, replaced_on
from netloader.vllm_plugin.serve.worker import this_worker


@dataclass(frozen=True, slots=True)
class Reloadable:
    """The record of a model's load that a reload in place needs."""

    plan: LoadPlan
    manifest: Manifest
    constructed: Mapping[str, int] = field(default_factory=dict)
    placeholders: bool = False
    """Whether the weights are placeholders, so that nothing is on offer yet."""


def remember(model: nn.Module, load: Reloadable) -> None:
    """Keep what a reload in place must know of a model, as long as the model lives."""
    this_worker().loads.put(model, load)


def remembered(model: nn.Module) -> Reloadable | None:
    """The value that `remember` stored for a model, if any."""
    load = this_worker().loads.get(model)
    return load if isinstance(load, Reloadable) else None


def obstacle(model: nn.Module) -> str:
    """Why a model must not be reloaded in place, or ''.

    vLLM refuses it for experts that constants stand for (`expert_substitution`, from 0.33 on), but
    in the model's `load_weights`, which received tensors do not pass through.

    On a CPU, vLLM leaves fused experts in the form of the checkpoint and the packed int8 weights of
    linear layers empty: the engine then answers nonsense, without an error.
    """
    if compat.has_substituted_experts(model):
        return "vLLM cannot reload substituted experts in place"
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return ""
    methods = {type(getattr(module, "quant_method", None)) for module in model.modules()}
    kinds = methods - {type(None)}
    odd = sorted({kind.__name__ for kind in kinds if not compat.reload_rebuilds(kind)})
    return f"vLLM cannot reload {', '.join(odd)} in place on a CPU" if odd else ""


def unreadable(model: nn.Module) -> str:
    """Why no checkpoint must be read into a model in place, or ''. Received tensors may be.

    The layers that vLLM 0.23 wraps around others for LoRA adapters pass no checkpoint on to those.
    Its reload takes every layer back to the form before loading, fails at the first wrapped one
    (`KeyError: 'embed_tokens.weight'`), and the engine cannot answer any more.
    """
    for module in model.modules():
        wraps = isinstance(getattr(module, "base_layer", None), nn.Module)
        if wraps and not hasattr(module, "load_weights"):
            kind = type(module).__name__
            return f"this vLLM cannot read a checkpoint into a layer with adapters ({kind})"
    return ""


def beside(manifest: Manifest, device: torch.device) -> list[Named]:
    """Empty tensors as a manifest describes them, aliases included; they take its `nbytes`."""
    sharing: dict[int, list[TensorSpec]] = {}
    for index, spec in enumerate(manifest.tensors):
        sharing.setdefault(index if spec.shares < 0 else spec.shares, []).append(spec)
    built = {n: t for specs in sharing.values() for n, t in _in_one_storage(specs, device)}
    return [(spec.name, built[spec.name]) for spec in manifest.tensors]


def _in_one_storage(specs: Sequence[TensorSpec], device: torch.device) -> Iterator[Named]:
    """Tensors that share memory; the first need not be the one that begins first."""
    dtypes: list[torch.dtype] = [getattr(torch, spec.dtype) for spec in specs]
    places = list(zip(specs, dtypes, strict=True))
    end = max(spec.offset + _extent(spec) * dtype.itemsize for spec, dtype in places)
    begin = min(spec.offset for spec in specs)
    while any((spec.offset - begin) % dtype.itemsize for spec, dtype in places):
        begin -= 1  # where the storage of the other side began, all were aligned
    storage = torch.empty(end - begin, dtype=torch.uint8, device=device).untyped_storage()
    for spec, dtype in places:
        view = torch.empty(0, dtype=dtype, device=device)
        offset = (spec.offset - begin) // dtype.itemsize
        yield spec.name, view.set_(storage, offset, spec.shape, spec.stride)


def _extent(spec: TensorSpec) -> int:
    """Elements from the first to the last one of a tensor, holes included."""
    reach = sum((n - 1) * step for n, step in zip(spec.shape, spec.stride, strict=True))
    return reach + 1 if spec.nbytes else 0


class HandOver:
    """What to give to `model.load_weights` in a reload: nothing, for each layer is filled directly.

    Make it before vLLM prepares the reload. As long as it lives (vLLM holds it until the reload is
    over), the model's `load_weights` hands the received tensors to the layers, and those take what
    they get as it is: it is their own shard. Iterating yields nothing.
    """

    def __init__(self, model: nn.Module, named: Sequence[Named]) -> None:
        places = _outside(model, [name for name, _ in named])
        layers = [(*_layer_of(model, name), t) for name, t in named if name not in places]
        loose = [(places[name], tensor) for name, tensor in named if name in places]
        stack = ExitStack()
        for layer in {layer for layer, _, _ in layers}:
            stack.enter_context(_takes_copies(layer))
        stack.enter_context(replaced_on(model, "load_weights", partial(_fill, layers, loose)))
        weakref.finalize(self, stack.close)

    def __iter__(self) -> Iterator[Named]:
        """Nothing."""
        return iter(())


def _fill(
    layers: list[tuple[nn.Module, str, Tensor]],
    loose: list[tuple[Tensor, Tensor]],
    weights: object,
) -> None:
    """Stand in for `model.load_weights`; returns None, so that vLLM does not count names.

    What hangs outside the tree of modules is `loose`: vLLM's reload does not touch it.
    """
    del weights
    for place, tensor in loose:
        place.data.copy_(tensor)
    for layer, attribute, tensor in layers:
        target = getattr(layer, attribute, None)
        if isinstance(target, Tensor):
            getattr(target, "weight_loader", _copy)(target, tensor)


def _outside(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of these names that hang outside the tree of modules.

    A parameter that post-processing took away is not among them: a reload brings it back.
    """
    away = [name for name in names if not _registered(model, name)]
    found = inventory.take(model).tensors if away else {}
    return {name: found[name] for name in away if name in found}


def _registered(model: nn.Module, name: str) -> bool:
    try:
        layer, attribute = _layer_of(model, name)
    except AttributeError:  # no module has this path
        return False
    return attribute in layer._parameters or attribute in layer._buffers  # noqa: SLF001


def _layer_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The layer that holds a tensor, without the wrapper of an adapter."""
    prefix, _, attribute = name.rpartition(".")
    layer = model.get_submodule(prefix)
    inner = getattr(layer, "base_layer", layer)
    return inner if isinstance(inner, nn.Module) else layer, attribute


@contextmanager
def _takes_copies(layer: nn.Module) -> Iterator[None]:
    """Have a layer load by plain copy in this reload: received tensors are its own shard."""
    parameters, buffers = get_layerwise_info(layer).restore_metadata
    own = (*layer._parameters.values(), *layer._buffers.values())  # noqa: SLF001 - not its children
    live = (tensor for tensor in own if tensor is not None)
    tensors = [*parameters.values(), *buffers.values(), *live]
    with ExitStack() as stack:
        for tensor in tensors:
            stack.enter_context(attribute_set(tensor, "weight_loader", _copy))
        yield


def _copy(param: Tensor, loaded_weight: Tensor) -> None:
    """A weight loader as vLLM calls them; the names of the arguments are vLLM's."""
    if param.numel() != loaded_weight.numel():
        raise ValueError(f"{tuple(loaded_weight.shape)} does not fit {tuple(param.shape)}")
    param.data.copy_(loaded_weight.view(param.shape))
