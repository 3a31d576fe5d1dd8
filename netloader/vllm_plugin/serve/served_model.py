"""What a rank offers of one model, and how that is collected again after the model has changed.

After a change only weights that the engine uses are offered. Raw tensors that the kernels still
use have changed with the model. The others, which only netloader keeps, must have been copied on
their way through post-processing, or the kernels must hold the same bytes as before. And what
kernels made of raw tensors must have been made again when those changed: both are compared with
the usage record from before the change. A tensor for which this fails is lost until its layer is
loaded again.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from netloader.files.folder import FolderFiles
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest
from netloader.io.store.module import ModuleStore, Named, WeightsError
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.inspect.look import Part
from netloader.vllm_plugin.patches.compat import reload_rebuilds
from netloader.vllm_plugin.patches.instance import replaced_on
from netloader.vllm_plugin.serve.announcing import Place
from netloader.vllm_plugin.serve.kept import Kept, layer_at, uses
from netloader.vllm_plugin.serve.saving import Saving
from netloader.vllm_plugin.serve.usage_record import UsageRecord, UsageState

PROCESS = "process_weights_after_loading"
"""vLLM's name for post-processing: a method of what a layer has as its `quant_method`, and of
attention layers themselves."""
KNOWN_S = 60.0
"""How long a change waits until it is known what the kernels held before it."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Weights on offer. `identity` is asked anew: a reload may have changed the checkpoint."""

    role: str
    layout: str
    identity: Callable[[], Identity]
    facts: Mapping[str, str]
    weights: ModuleStore
    renew: Callable[["Changed"], ModuleStore]
    """The same tensors after a change of the model; WeightsError when there are none."""
    usage: UsageRecord
    """Tells whether the engine still uses what is on offer."""
    owners: Mapping[str, "weakref.ref[nn.Module]"] = field(default_factory=dict)
    """For each tensor that the model has no more under its name: the layer it belongs to."""
    cached_bytes: int = 0
    cached_in: str = "nowhere"
    """Where those are: `dram`, `hbm` or, if there are none, `nowhere`."""
    digests: tuple[str, ...] = ()
    place: Place | None = None
    """Where a registry names it; None where there is none."""
    folder: FolderFiles | None = None
    """The files of the model's folder that clients need to start; None on ranks that offer none."""
    saving: Saving | None = None
    """Where it is written to, for the next start; None: nowhere."""


@dataclass(slots=True)
class Changed:
    """What was seen of a change: originals on their way, and the modules that were processed."""

    originals: dict[str, Tensor] = field(default_factory=dict)
    processed: set[nn.Module] = field(default_factory=set)


def owners_of(model: nn.Module, kept: Kept) -> dict[str, "weakref.ref[nn.Module]"]:
    """The layers of tensors that left the place where they were loaded; before adapters come."""
    layers = {name: layer_at(model, name) for name in kept.detached}
    return {name: weakref.ref(layer) for name, layer in layers.items() if layer is not None}


def place_of(kept: Kept) -> str:
    """Where the tensors are that only netloader keeps."""
    devices = {tensor.device.type for name, tensor in kept.named if name in kept.cached}
    return ("dram" if devices == {"cpu"} else "hbm") if devices else "nowhere"


class Originals:
    """The raw tensors of a model from change to change: each starts from the one before it."""

    def __init__(
        self, model: nn.Module, kept: Kept, manifest: Manifest, usage: UsageRecord
    ) -> None:
        self._tensors = dict(kept.named)
        self._owners = owners_of(model, kept)
        self._manifest = manifest
        self._usage = usage
        self._lost = {name for name in kept.detached if name not in self._owners}
        places = ((n, layer_at(model, n)) for n in self._tensors if n not in kept.detached)
        self._places = {n: weakref.ref(layer) for n, layer in places if layer is not None}

    def renew(self, changed: Changed) -> ModuleStore:
        """Raw weights after a change, which are offered from now on.

        Raises:
            WeightsError: it is not known that they stand for what the engine uses; the message
                names what was missed.
        """
        with self._usage.examination() as now:
            self._compare(self._usage.noted, now, changed)
            self._usage.accept(now)
        if unknown := sorted({*self._lost, *self._replaced()}):
            some = ", ".join(unknown[:5])
            count = len(unknown)
            raise WeightsError(
                f"the engine does not use what is known of {count} parameters, among: {some}"
            )
        return _same([*self._tensors.items()], self._manifest)

    def _compare(self, before: UsageState, now: UsageState, changed: Changed) -> None:
        """Take the originals of a change, and note which of all are known since then, or lost."""
        verdicts = _Verdicts(changed, self._tensors, self._names_by_layer(), self._lost)
        for label in {**before.parts, **now.parts}:
            verdicts.judge(before.parts.get(label), now.parts.get(label))
        verdicts.rest()
        verdicts.lost.update(before.other_tables(now))
        self._tensors.update(changed.originals)
        self._lost -= verdicts.known
        self._lost |= verdicts.lost

    def _names_by_layer(self) -> dict[nn.Module, list[str]]:
        found: dict[nn.Module, list[str]] = {}
        for name, reference in self._owners.items():
            layer = reference()
            if layer is not None:
                found.setdefault(layer, []).append(name)
        return found

    def _replaced(self) -> list[str]:
        """Tensors that the kernels shared, and that the model has replaced."""
        places = ((name, layer(), self._tensors[name]) for name, layer in self._places.items())
        return [n for n, layer, t in places if t.numel() and not uses(layer, n, t)]


class _Verdicts:
    """For each part of a model after a change: whether its originals are known."""

    def __init__(
        self,
        changed: Changed,
        tensors: Mapping[str, Tensor],
        names: Mapping[nn.Module, list[str]],
        lost: AbstractSet[str],
    ) -> None:
        self._processed = changed.processed
        self._names = dict(names)
        self._fresh = {n: inventory.digest_one(t) for n, t in changed.originals.items()}
        self._old = {n: inventory.digest_one(tensors[n]) for n in changed.originals}
        self._lost = lost
        self.known: set[str] = set()
        self.lost: set[str] = set()

    def judge(self, then: Part | None, now: Part | None) -> None:
        """Compare the two halves of a part: what its kernels hold, and what that follows from."""
        some = now or then
        owner = some.owner() if some is not None else None
        if some is None or owner is None:
            return
        then = then or Part(some.label, some.owner)
        now = now or Part(some.label, some.owner)
        names = self._names.pop(owner, [])
        about = {*names} or {some.label}
        own = any(self._fresh[n] != self._old[n] for n in names if n in self._fresh)
        own = own or _own(then.sources) != _own(now.sources)
        moved = own or then.follows_from_others(now)
        remade = bool(then.changes(now))
        seen = owner in self._processed and self._fresh.keys() >= {*names}
        if not remade and not seen and not moved:
            return  # nothing happened to it: it is known, or lost, as it was
        good = seen and _rebuilds(owner) and not self._unprocessed(names, then, now)
        good = good and then.fresh(now) <= now.copies  # of others it is not known what they are of
        if good and not about & self._lost:
            # Both halves are what they were, or neither is: else one of them is of another time.
            stale = own and not remade and bool(now.derived or now.handles)
            good = not stale and (moved or then.derived == now.derived)
        if good:
            self.known |= about
        elif moved or remade:
            self.lost |= about

    def rest(self) -> None:
        """Lose new originals of layers whose kernels hold nothing that could be compared."""
        for names in self._names.values():
            self.lost.update(n for n in names if self._fresh.get(n) != self._old.get(n))

    def _unprocessed(self, names: list[str], then: Part, now: Part) -> bool:
        """Whether a layer's kernels got an original as it is, which they had in another form."""
        ends = {name: name.rpartition(".")[2] for name in names}
        return any(
            self._fresh[name] == digest and self._old[name] != then.derived.get(path)
            for path, digest in now.derived.items()
            for name, end in ends.items()
            if path.rpartition(".")[2] == end and name in self._fresh
        )


def _own(sources: Mapping[str, str]) -> dict[str, str]:
    """Those that are registered in the module itself, not in one that it can reach."""
    return {path: digest for path, digest in sources.items() if path.isidentifier()}


def _rebuilds(owner: nn.Module) -> bool:
    """Whether vLLM's reload in place makes anew what the kernels of a layer hold.

    On a CPU it does not for fused experts and packed int8 weights, without an error.
    """
    kind = type(getattr(owner, "quant_method", None))
    on_cpu = all(parameter.device.type == "cpu" for parameter in owner.parameters())
    vllm_own = kind.__module__.startswith("vllm")
    return not (on_cpu and vllm_own) or reload_rebuilds(kind)


def renew_processed(
    collect: Callable[[], list[Named]], manifest: Manifest, usage: UsageRecord, changed: Changed
) -> ModuleStore:
    """Processed weights after a change: collected again.

    Raises:
        WeightsError: the model now keeps other tensors.
    """
    del changed
    with usage.examination() as now:
        weights = _same(collect(), manifest)
        usage.accept(now)
    return weights


def _same(named: list[Named], manifest: Manifest) -> ModuleStore:
    weights = ModuleStore(named)
    difference = manifest.difference(weights.manifest)
    if difference is not None:
        raise WeightsError(f"the model was changed in more than its bytes: {difference}")
    return weights


@contextmanager
def watched(served: ServedModel) -> Iterator[Changed]:
    """Watch a model while it is changed; what was seen is complete when the block ends."""
    changed = Changed()
    names: dict[nn.Module, dict[str, list[str]]] = {}
    for name, reference in served.owners.items():
        layer = reference()
        if layer is not None:
            names.setdefault(layer, {}).setdefault(name.rpartition(".")[2], []).append(name)
    owners = (part.owner() for part in served.usage.noted.parts.values())
    with ExitStack() as stack:
        for layer in {*names, *(owner for owner in owners if owner is not None)}:
            keep = partial(_copy_of, place=served.cached_in)
            see = partial(_see, changed, layer, names.get(layer, {}), keep)
            for holder in (getattr(layer, "quant_method", None), layer):
                if hasattr(holder, PROCESS):
                    stack.enter_context(_hooked(holder, layer, see))
        yield changed


def _see(
    changed: Changed,
    layer: nn.Module,
    names: Mapping[str, list[str]],
    keep: Callable[[Tensor], Tensor],
) -> None:
    """Note that a layer is processed, and copy its originals."""
    changed.processed.add(layer)
    for attribute, aliases in names.items():
        tensor = getattr(layer, attribute, None)
        if isinstance(tensor, Tensor) and not tensor.is_meta:
            with suppress(Exception):  # no memory, say: then it is lost, and said to be
                changed.originals.update(dict.fromkeys(aliases, keep(tensor)))


def _copy_of(tensor: Tensor, place: str) -> Tensor:
    """A copy where originals are kept; a device has no room for a second model."""
    return tensor.detach().to("cpu" if place == "dram" else tensor.device, copy=True)


@contextmanager
def _hooked(holder: Any, layer: nn.Module, see: Callable[[], None]) -> Iterator[None]:
    """Call `see` at the moment vLLM has a layer post-processed by a method of `holder`."""
    process = holder.process_weights_after_loading

    def see_first(*args: Any, **kwargs: Any) -> Any:
        if holder is layer or layer in args:
            see()
        return process(*args, **kwargs)

    with replaced_on(holder, PROCESS, see_first):
        yield
