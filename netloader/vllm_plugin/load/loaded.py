"""What is remembered of a model between loading and post-processing."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

from torch import nn
from vllm.config import ModelConfig
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from netloader.fsm.manifest import Manifest, Progress
from netloader.io.store.module import Named, WeightsError, manifest_of, named_tensors
from netloader.log import emit, get_logger
from netloader.vllm_plugin.config.settings import Keeping
from netloader.vllm_plugin.identity.identity import (
    DRAFT,
)
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.inspect.inventory import Inventory
from netloader.vllm_plugin.load import load_state, provenance
from netloader.vllm_plugin.load.plan import LoadPlan
from netloader.vllm_plugin.load.raw import RawSnapshot, algorithm_of
from netloader.vllm_plugin.load.room import Room
from netloader.vllm_plugin.log_base import LOG_BASE
from netloader.vllm_plugin.patches import placeholders
from netloader.vllm_plugin.patches.instance import replaced_on

UNKNOWN = Manifest(())


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is remembered of a model between loading and post-processing."""

    state: load_state.State
    """What `load_weights` left behind, here or on the server."""
    unfilled: frozenset[str] = frozenset()
    manifest: Manifest = UNKNOWN
    """Of the raw tensors; empty when they are not known."""
    snapshot: RawSnapshot | None = None
    obstacle: str = ""
    """Why there is no snapshot; empty if none is wanted."""
    filled: frozenset[str] = frozenset()
    """Tensors that travel beside parameters and persistent buffers, see `provenance`."""
    constructed: Mapping[str, int] = field(default_factory=dict)
    """What else the model was constructed to hold, see `provenance`."""
    room: Room | None = None
    """Of a model that holds placeholders: where its weights go. These are offered in no layout."""


NOT_KNOWN = Loaded(load_state.NOTHING, obstacle="netloader has failed here, see the error above")


def reloadable(loaded: Loaded, model: nn.Module) -> bool:
    """Whether received raw weights can be handed to vLLM's reload in place.

    A state of `load_weights`, or layers that quantize while loading, would be passed over.
    """
    online = any(map(load_state.quantizes_while_loading, model.modules()))
    return bool(loaded.manifest.tensors) and not loaded.state and not online


def taken(plan: LoadPlan, model: nn.Module, keeping: Keeping | None, progress: Progress) -> Loaded:
    """Remember what was received and verified; never raises."""
    known = () if keeping is None else known_digests(progress, keeping)
    loaded = Loaded(plan.state, plan.unfilled, filled=plan.filled)
    return _safely(lambda: _remember(loaded, plan, model, keeping, inventory.take(model), known))


def known_digests(progress: Progress, keeping: Keeping) -> tuple[str, ...]:
    """The segment digests of what was received, where they are those that would be computed."""
    wanted = (keeping.segment_bytes, algorithm_of(keeping))
    same = (progress.segment_bytes, progress.digest_algorithm) == wanted
    return progress.segment_digests if same else ()


def read(
    loader: BaseModelLoader,
    plan: LoadPlan,
    model: nn.Module,
    model_config: ModelConfig,
    keeping: Keeping | None,
) -> Loaded:
    """Have the ordinary loader read the checkpoint, and record its changes to the model.

    Raises what that loader raises, and nothing else.
    """
    try:
        watch: _Watch | None = _Watch(model, plan)
    except Exception as error:  # noqa: BLE001 - the model is loaded all the same, and not served
        emit(get_logger("server", LOG_BASE), "netloader.driver.error", exc_info=error)
        watch = None
    try:
        with placeholders.watching(loader) as made:
            loader.load_weights(model, model_config)
    finally:
        if watch is not None:
            watch.stop()
    if watch is None:
        return NOT_KNOWN
    if made.seen:
        return _safely(lambda: _placeholders(model))
    return _safely(lambda: watch.remembered(keeping))


class _Watch:
    """What is seen of a model while the ordinary loader reads its checkpoint."""

    def __init__(self, model: nn.Module, plan: LoadPlan) -> None:
        self._model = model
        self._plan = plan
        self._built = provenance.Built(model)
        self._before = _digests(model) if plan.role == DRAFT else {}
        self._filled: list[set[str] | None] = []
        read_all: Any = getattr(model, "load_weights", None)
        self._reading = ExitStack()
        if callable(read_all):
            noting = _noting(read_all, self._filled)
            self._reading.enter_context(replaced_on(model, "load_weights", noting))

    def stop(self) -> None:
        """Leave the model's `load_weights` as it was."""
        self._reading.close()

    def remembered(self, keeping: Keeping | None) -> Loaded:
        """What the checkpoint did to the model."""
        derived = self._built.derived(self._model)
        if derived.obstacle:
            return Loaded(derived.values, obstacle=derived.obstacle)
        unfilled = _unfilled(self._model, self._before, self._filled)
        loaded = Loaded(derived.values, unfilled, filled=derived.filled)
        return _remember(loaded, self._plan, self._model, keeping, derived.found)


def _placeholders(model: nn.Module) -> Loaded:
    """A model that is filled later, in place."""
    loaded = Loaded(load_state.NOTHING)
    found = inventory.take(model)
    named = _travelling(loaded, model, found)
    described = _described(loaded, found, manifest_of(named))
    return replace(described, room=Room(named, described.manifest))


def _safely(work: Callable[[], Loaded]) -> Loaded:
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - the engine serves inference without us
        emit(get_logger("server", LOG_BASE), "netloader.driver.error", exc_info=error)
        return NOT_KNOWN


@inventory.uncollected()
def _remember(
    loaded: Loaded,
    plan: LoadPlan,
    model: nn.Module,
    keeping: Keeping | None,
    found: Inventory,
    known: tuple[str, ...] = (),
) -> Loaded:
    """Add the raw tensors: described for a reload in place, kept if they are to be served."""
    try:
        named = _travelling(loaded, model, found)
        if not plan.serves or keeping is None:
            return _described(loaded, found, manifest_of(named))
        snapshot = RawSnapshot(named, keeping, known, model.buffers())
        return replace(_described(loaded, found, snapshot.manifest), snapshot=snapshot)
    except WeightsError as error:
        return replace(loaded, obstacle=str(error))


def _described(loaded: Loaded, found: Inventory, manifest: Manifest) -> Loaded:
    """Add what raw tensors there are, and what else the model was constructed to hold."""
    return replace(loaded, manifest=manifest, constructed=provenance.constructed(found))


def _travelling(loaded: Loaded, model: nn.Module, found: Inventory) -> list[Named]:
    named = provenance.travelling(model, found, loaded.filled, loaded.state)
    return [(name, tensor) for name, tensor in named if name not in loaded.unfilled]


def _noting(load_weights: Callable[..., Any], filled: list[set[str] | None]) -> Callable[..., Any]:
    """A model's `load_weights`, which also notes the names that it says it has filled."""

    @wraps(load_weights)
    def noting(*args: Any, **kwargs: Any) -> Any:
        names = load_weights(*args, **kwargs)
        filled.append(set(names) if names is not None else None)
        return names

    return noting


def _digests(model: nn.Module) -> dict[str, str]:
    return inventory.digest(inventory.Inventory(tensors=dict(named_tensors(model))))


def _unfilled(
    model: nn.Module, before: dict[str, str], filled: list[set[str] | None]
) -> frozenset[str]:
    """Parameters of a draft that no checkpoint fills: not said to be, and bytewise untouched.

    An EAGLE draft without an embedding of its own has an uninitialised one, until vLLM puts the
    target's in its place. Its bytes are garbage, and are gone before a client could ask.
    """
    if not before or not filled or None in filled:
        return frozenset()
    said = set().union(*(names for names in filled if names is not None))
    now = _digests(model)
    return frozenset(n for n, digest in now.items() if n not in said and before.get(n) == digest)
