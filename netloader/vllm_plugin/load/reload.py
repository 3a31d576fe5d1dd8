"""Reload in place from sources: vLLM's own reload does the work with received tensors.

vLLM reloads layer by layer: it takes each layer back to the form it had before loading, has a
checkpoint read into it, post-processes it, and copies the result to where the old weights are. Its
`model.load_weights` expects tensors in the form of a checkpoint, and received ones have the form
after it. So received tensors are given to each layer as they are: they take the place of those that
vLLM would make anew and copy into. What was received where the kernels read it is copied nowhere.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader.reload.layerwise import (
    _place_kernel_tensors,
    get_layerwise_info,
)

from netloader.fsm.manifest import Manifest
from netloader.io.store.module import Named
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.load.plan import LoadPlan
from netloader.vllm_plugin.load.room import Room, beside
from netloader.vllm_plugin.patches import compat
from netloader.vllm_plugin.patches.instance import attribute_set, replaced_on
from netloader.vllm_plugin.serve.worker import this_worker


@dataclass(frozen=True, slots=True)
class Reloadable:
    """The record of a model's load that a reload in place needs."""

    plan: LoadPlan
    manifest: Manifest
    constructed: Mapping[str, int] = field(default_factory=dict)
    room: Room | None = None
    """Where weights are received; None once the model has some, which a transfer must not touch."""

    def destination(self, device: torch.device) -> list[Named]:
        """The tensors that are to be filled: in place of placeholders, else in new memory.

        Raises:
            UnsafeError: an aborted transfer may still write there.
        """
        return self.room.tensors(device) if self.room else beside(self.manifest, device)


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


class HandOver:
    """What to give to `model.load_weights` in a reload: nothing, for each layer is filled directly.

    Make it before vLLM prepares the reload. `prepare` is called for each layer before it gets its
    tensors. As long as it lives (vLLM holds it until the reload is
    over), the model's `load_weights` hands the received tensors to the layers, and those take what
    they get as it is: it is their own shard. Iterating yields nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        named: Sequence[Named],
        prepare: Callable[[nn.Module], None] = lambda layer: None,  # noqa: ARG005
    ) -> None:
        _put_back(model)
        places = _outside(model, [name for name, _ in named])
        layers = [(*_layer_of(model, name), t) for name, t in named if name not in places]
        loose = [(places[name], tensor) for name, tensor in named if name in places]
        stack = ExitStack()
        for layer in {layer for layer, _, _ in layers}:
            stack.enter_context(_takes_copies(layer))
        fill = partial(_fill, layers, loose, prepare)
        stack.enter_context(replaced_on(model, "load_weights", fill))
        weakref.finalize(self, stack.close)

    def __iter__(self) -> Iterator[Named]:
        """Nothing."""
        return iter(())


def _put_back(model: nn.Module) -> None:
    """Undo what a reload that failed has left of a model.

    vLLM would take up each layer where it was, and would not process those that had all tensors.
    """
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            if info.kernel_tensors is not None:
                _place_kernel_tensors(layer, info)
            info.reset()


def _fill(
    layers: list[tuple[nn.Module, str, Tensor]],
    loose: list[tuple[Tensor, Tensor]],
    prepare: Callable[[nn.Module], None],
    weights: object,
) -> None:
    """Stand in for `model.load_weights`; returns None, so that vLLM does not count names.

    What hangs outside the tree of modules is `loose`: vLLM's reload does not touch it.
    """
    del weights
    for place, tensor in loose:
        place.data.copy_(tensor)
    for layer, attribute, tensor in layers:
        prepare(layer)
        target = getattr(layer, attribute, None)
        if isinstance(target, Tensor):
            if target.is_meta and _alike(target, tensor):
                target = _in_its_place(target, tensor)
                setattr(layer, attribute, target)
            getattr(target, "weight_loader", _copy)(target, tensor)


def _alike(one: Tensor, other: Tensor) -> bool:
    mine, theirs = ((t.dtype, t.shape, t.stride()) for t in (one, other))
    return mine == theirs


def _in_its_place(meta: Tensor, tensor: Tensor) -> Tensor:
    """A received tensor as vLLM would have made it of a layer's description."""
    made = tensor.detach()
    made.__class__ = meta.__class__
    vars(made).update(vars(meta))
    return made


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
