"""What a rank has on offer of one model, and how it is had again after the model has changed.

Law: after a change nothing old is offered. Raw tensors that the kernels still use have changed with
the model; of the others, which only we keep, the new originals must have been seen on their way
through post-processing, or their layer must be bytewise what it was. One that was missed is lost
until its layer is loaded again.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor, nn

from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest
from netloader.io.weights import Named, Weights, WeightsError
from netloader.vllm_plugin import inventory
from netloader.vllm_plugin.layout import Kept, in_use

PROCESS = "process_weights_after_loading"
"""vLLM's name for post-processing, a method of what a layer has as its `quant_method`."""


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


def owners_of(model: nn.Module, kept: Kept) -> dict[str, "weakref.ref[nn.Module]"]:
    """The layers of the tensors that only we keep; taken early, before an adapter wraps them."""
    return {n: weakref.ref(model.get_submodule(n.rpartition(".")[0])) for n in kept.cached}


def place_of(kept: Kept) -> str:
    """Where the tensors are that only we keep."""
    devices = {tensor.device.type for name, tensor in kept.named if name in kept.cached}
    return ("dram" if devices == {"cpu"} else "hbm") if devices else "nowhere"


class Originals:
    """The raw tensors of a model from change to change: each starts from the one before it."""

    def __init__(self, model: nn.Module, kept: Kept, manifest: Manifest) -> None:
        self._model = weakref.ref(model)  # what is on offer must not keep its model alive
        self._tensors = dict(kept.named)
        self._cached = kept.cached
        self._manifest = manifest
        self._lost: set[str] = set()

    def renew(self, changed: Changed) -> Weights:
        """Raw weights after a change.

        Raises:
            WeightsError: an original was not seen, or is of another shape.
        """
        self._tensors.update(changed.originals)
        self._lost |= self._cached - changed.untouched
        self._lost -= changed.originals.keys()
        if unknown := [*self._lost, *self._replaced()]:
            some = ", ".join(unknown[:5])
            count = len(unknown)
            raise WeightsError(f"the originals of {count} parameters are not known, among: {some}")
        return _same([*self._tensors.items()], self._manifest)

    def _replaced(self) -> list[str]:
        """Tensors that the kernels shared, and that are no part of the model any more."""
        model = self._model()
        live = in_use(model) if model is not None else set()
        shared = (item for item in self._tensors.items() if item[0] not in self._cached)
        return [n for n, t in shared if t.numel() and t.untyped_storage().data_ptr() not in live]


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
            if hasattr(method, PROCESS):
                keep = partial(_copy_of, place=goods.cached_in)
                stack.enter_context(_hooked(method, layer, names, keep, changed.originals))
        yield changed
    for layer, names in layers.items():
        if _bytes_of(layer) == before[layer]:
            changed.untouched.update({*chain(*names.values())} - changed.originals.keys())


def _bytes_of(layer: nn.Module) -> dict[str, str]:
    """Digests of what a layer itself holds."""
    own = {**layer._parameters, **layer._buffers}  # noqa: SLF001 - of this layer alone
    held = {name: tensor for name, tensor in own.items() if tensor is not None}
    return inventory.digest(inventory.Inventory(tensors=held))


def _copy_of(tensor: Tensor, place: str) -> Tensor:
    """A copy where originals are kept; a device has no room for a second model."""
    return tensor.detach().to("cpu" if place == "dram" else tensor.device, copy=True)


@contextmanager
def _hooked(
    method: Any,
    layer: nn.Module,
    names: Mapping[str, list[str]],
    keep: Callable[[Tensor], Tensor],
    originals: dict[str, Tensor],
) -> Iterator[None]:
    """Copy a layer's originals at the moment vLLM hands them to post-processing."""
    process = method.process_weights_after_loading
    own = vars(method).get(PROCESS)

    def copy_first(given: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if given is layer:
            for attribute, aliases in names.items():
                tensor = getattr(layer, attribute, None)
                if isinstance(tensor, Tensor) and not tensor.is_meta:
                    with suppress(Exception):  # no memory, say: then it is lost, and said to be
                        originals.update(dict.fromkeys(aliases, keep(tensor)))
        return process(given, *args, **kwargs)

    setattr(method, PROCESS, copy_first)
    try:
        yield
    finally:
        if vars(method).get(PROCESS) is copy_first:
            delattr(method, PROCESS)
            vars(method).update({PROCESS: own} if own is not None else {})
