"""What a rank has on offer of one model, and how it is had again after the model has changed.

Law: after a change nothing old is offered. Raw tensors that the kernels still use have changed with
the model; of the others, which only we keep, the new originals must have been seen on their way
through post-processing, or their layer must be bytewise what it was.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import Tensor, nn

from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest
from netloader.io.weights import Named, Weights, WeightsError
from netloader.vllm_plugin import inventory
from netloader.vllm_plugin.layout import Kept


@dataclass(frozen=True, slots=True)
class Goods:
    """Weights on offer. `identity` is asked anew: a reload may have changed the checkpoint."""

    role: str
    layout: str
    identity: Callable[[], Identity]
    facts: Mapping[str, str]
    weights: Weights
    renew: Callable[["Changed"], Weights]
    """The same tensors after a change of the model; WeightsError when they cannot be had."""
    owners: Mapping[str, "weakref.ref[nn.Module]"] = field(default_factory=dict)
    """For each tensor that only we keep alive: the layer it belongs to."""
    cached_bytes: int = 0
    cached_in: str = "nowhere"
    """Where those are: `dram`, `hbm` or, if there are none, `nowhere`."""
    digests: tuple[str, ...] = ()


@dataclass(slots=True)
class Changed:
    """What was seen of a change: originals on their way, and layers that stayed as they were."""

    originals: dict[str, Tensor] = field(default_factory=dict)
    untouched: set[str] = field(default_factory=set)

    def nothing(self, goods: "Goods") -> bool:
        """Whether no tensor that only we keep belongs to a layer that has changed."""
        return not self.originals and self.untouched >= goods.owners.keys()


def owners_of(model: nn.Module, kept: Kept) -> dict[str, "weakref.ref[nn.Module]"]:
    """The layers of the tensors that only we keep; taken early, before an adapter wraps them."""
    return {n: weakref.ref(model.get_submodule(n.rpartition(".")[0])) for n in kept.cached}


def place_of(kept: Kept) -> str:
    """Where the tensors are that only we keep."""
    devices = {tensor.device.type for name, tensor in kept.named if name in kept.cached}
    return ("dram" if devices == {"cpu"} else "hbm") if devices else "nowhere"


def renew_raw(kept: Kept, manifest: Manifest, changed: Changed) -> Weights:
    """Raw weights after a change.

    Raises:
        WeightsError: an original was not seen, or is of another shape.
    """
    named: list[Named] = []
    lost: list[str] = []
    for name, tensor in kept.named:
        if name not in kept.cached or name in changed.untouched:
            named.append((name, tensor))
        elif name in changed.originals:
            named.append((name, changed.originals[name]))
        else:
            lost.append(name)
    if lost:
        some = ", ".join(lost[:5])
        raise WeightsError(f"the originals of {len(lost)} parameters are not known, among: {some}")
    return _same(named, manifest)


def renew_processed(
    collect: Callable[[], list[Named]], manifest: Manifest, changed: Changed
) -> Weights:
    """Processed weights after a change: collected again.

    Raises:
        WeightsError: the model now keeps other tensors.
    """
    del changed
    return _same(collect(), manifest)


def _same(named: list[Named], manifest: Manifest) -> Weights:
    weights = Weights(named)
    difference = manifest.difference(weights.manifest)
    if difference is not None:
        raise WeightsError(f"the model was changed in more than its bytes: {difference}")
    return weights


@contextmanager
def watched(goods: Goods) -> Iterator[Changed]:
    """Watch a model while it is changed; what was seen is complete when the block ends."""
    changed = Changed()
    layers: dict[nn.Module, dict[str, list[str]]] = {}
    for name, reference in goods.owners.items():
        layer = reference()
        if layer is not None:
            layers.setdefault(layer, {}).setdefault(name.rpartition(".")[2], []).append(name)
    before = {layer: _bytes_of(layer) for layer in layers}
    with ExitStack() as stack:
        for layer, names in layers.items():
            method = getattr(layer, "quant_method", None)
            if hasattr(method, "process_weights_after_loading"):
                stack.enter_context(_hooked(method, layer, names, changed.originals))
        yield changed
    for layer, names in layers.items():
        if _bytes_of(layer) == before[layer]:
            changed.untouched.update({*chain(*names.values())} - changed.originals.keys())


def _bytes_of(layer: nn.Module) -> dict[str, str]:
    """Digests of what a layer itself holds."""
    own = {**layer._parameters, **layer._buffers}  # noqa: SLF001 - of this layer alone
    held = {name: tensor for name, tensor in own.items() if tensor is not None}
    return inventory.digest(inventory.Inventory(tensors=held))


@contextmanager
def _hooked(
    method: Any, layer: nn.Module, names: Mapping[str, list[str]], originals: dict[str, Tensor]
) -> Iterator[None]:
    """Copy a layer's originals at the moment vLLM hands them to post-processing."""
    process = method.process_weights_after_loading

    def copy_first(given: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if given is layer:
            for attribute, aliases in names.items():
                tensor = getattr(layer, attribute, None)
                if isinstance(tensor, Tensor) and not tensor.is_meta:
                    originals.update(dict.fromkeys(aliases, tensor.detach().clone()))
        return process(given, *args, **kwargs)

    method.process_weights_after_loading = copy_first
    try:
        yield
    finally:
        if vars(method).get("process_weights_after_loading") is copy_first:
            del method.process_weights_after_loading
