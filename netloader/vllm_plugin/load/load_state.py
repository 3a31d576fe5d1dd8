"""What a model's own `load_weights` leaves behind besides tensors: sent, or the model is refused.

Some models set flags while they read a checkpoint (an EAGLE draft notes whether it owns an
`lm_head`), on modules or on objects that hang on them. Some give a module one more name (the head
of an MTP layer becomes `lm_head` as well). A model that was filled from a source has not read a
checkpoint, so its server sends it. Other changes (a new module, an object) cannot be sent:
such a model is not served in raw layout.
"""

import copy
import hashlib
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor, nn

from netloader.errors import NetloaderError
from netloader.vllm_plugin.inspect.inventory import (
    INTERNAL,
    MODULE,
    SIMPLE,
    Alias,
    At,
    Inventory,
    Place,
    dot,
    take,
)
from netloader.vllm_plugin.inspect.reach import Kind, is_plain, kind_of

State = Mapping[str, Any]
"""Plain values by path: `model.has_own_lm_head` is an attribute of the module `model`. The path
`lm_head.(module)` is another name of a module; the value is the name that the module had before."""
NOTHING: State = MappingProxyType({})

_GONE = Place(None, At.FIXED, None, object())
_GONE_NOTE = ("gone", None)


class StateError(NetloaderError):
    """A server's state does not fit this model; the message names the attribute."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What `load_weights` did: plain values and names, and the paths of what is more than that."""

    values: State
    unknown: tuple[str, ...]
    online: frozenset[str] = field(default=frozenset(), compare=False)
    """The layers that quantize while loading, then or now: what is in them is not looked at."""


class Marks:
    """What hung on a model when this was made, apart from tensors."""

    def __init__(self, model: nn.Module, found: Inventory | None = None) -> None:
        self._online = online_layers(model)
        self._before = dict(_notes(found or take(model)))

    def changes(self, model: nn.Module, found: Inventory | None = None) -> Changes:
        """What is different now; `found` is a walk over the model, if there was one already."""
        now = found or take(model)
        online = self._online | online_layers(model)
        values: dict[str, Any] = self._added_names(now)
        unknown: list[str] = []
        known = online | names_in(values)
        for path in self._different(now):
            if path in values or inside(path, known):
                continue
            place = now.places.get(path, _GONE)
            fresh = place.at is At.ATTRIBUTE and not isinstance(place.holder, Tensor)
            if _settable(place) and (path in self._before or fresh):
                values[path] = copy.deepcopy(place.value)
            else:
                unknown.append(path)
        return Changes(values, outermost(unknown), online)

    def _added_names(self, now: Inventory) -> dict[str, Any]:
        """The names that modules of the tree have got in addition, as a state tells them."""
        modules = {path: now.places[path].value for path in now.places if path.endswith(MODULE)}
        before = {
            id(module): path.removesuffix(MODULE).removesuffix(".")
            for path, module in reversed(modules.items())
            if self._before.get(path, _GONE_NOTE)[1] is module
        }
        names: dict[str, Any] = {}
        for path, module in modules.items():
            fresh = path not in self._before and not inside(path, names_in(names))
            holder, name = _parted(path)
            if fresh and id(module) in before and holder in self._before and _is_name(name):
                names[path] = before[id(module)]
        return names

    def _different(self, now: Inventory) -> list[str]:
        """The paths at which something was replaced or removed."""
        found = [
            path
            for path, note in _notes(now)
            if not _same(self._before.get(path, _GONE_NOTE), note)
        ]
        return [*(path for path in self._before if path not in now.places), *found]


def names_in(state: State) -> frozenset[str]:
    """The names that modules have got in addition; all that is below them has older names."""
    return frozenset(path.removesuffix(f".{MODULE}") for path in state if path.endswith(MODULE))


def _parted(path: str) -> tuple[str, str]:
    """From the path of a module that of the module it is in, and its name there."""
    prefix, _, name = path.removesuffix(MODULE).removesuffix(".").rpartition(".")
    return dot(prefix, MODULE), name


def _is_name(name: str) -> bool:
    return name.isidentifier() and name not in INTERNAL


def outermost(paths: list[str]) -> tuple[str, ...]:
    """Paths in order, without those of what hangs on another one of them."""
    kept: list[str] = []
    for path in sorted(paths):
        if not any(path.startswith((f"{one}.", f"{one}[", f"{one}(")) for one in kept):
            kept.append(path)
    return tuple(kept)


def quantizes_while_loading(module: nn.Module) -> bool:
    """Whether vLLM turns this layer into another one inside `load_weights` (online methods)."""
    return bool(getattr(getattr(module, "quant_method", None), "uses_meta_device", False))


def online_layers(model: nn.Module) -> frozenset[str]:
    """The layers that quantize while loading: a client takes its own through the same steps."""
    named = model.named_modules(remove_duplicate=False)
    return frozenset(name for name, module in named if quantizes_while_loading(module))


def inside(path: str, layers: frozenset[str]) -> bool:
    """Whether a path is of one of these layers, or of what hangs on it."""
    if not layers:
        return False
    if path.endswith(MODULE):  # the layer itself stays, whatever becomes of it
        return inside(path.removesuffix(MODULE).removesuffix("."), layers) and (
            path.removesuffix(MODULE).removesuffix(".") not in layers
        )
    parts = path.replace("[", ".[").replace("(", ".(").split(".")
    return any(".".join(parts[:end]) in layers for end in range(len(parts)))


def _notes(found: Inventory) -> Iterator[tuple[str, tuple[str, object]]]:
    """By path, what to remember of a place to see whether it has changed: no tensor."""
    kinds: dict[type, Kind] = {}
    for path, (_, _, _, value) in found.places.items():
        if type(value) in SIMPLE:  # nearly all that there is
            yield path, (type(value).__name__, value)
        else:
            yield path, _note(value, kinds)


def _note(value: object, kinds: dict[type, Kind]) -> tuple[str, object]:
    if _plain(value):
        return "plain", repr(value)
    if isinstance(value, Alias):
        return "tensor", value.path
    if isinstance(value, np.ndarray):
        return "array", hashlib.sha256(repr((value.dtype, value.shape)).encode() + value.tobytes())
    if isinstance(value, (tuple, set, frozenset)) and all(map(_plain, value)):
        return "fixed", repr(sorted(map(repr, value)) if not isinstance(value, tuple) else value)
    family = type(value)
    kind = kinds[family] = kinds.get(family) or kind_of(family)
    return ("inert" if kind is Kind.INERT else "object"), value


def _same(old: tuple[str, Any], new: tuple[str, Any]) -> bool:
    if old[0] != new[0] or old[0] == "object":
        return old[0] == new[0] and old[1] is new[1]
    if old[0] == "array":
        return bool(old[1].digest() == new[1].digest())
    return old[1] is new[1] or bool(old[1] == new[1])


def _settable(place: Place) -> bool:
    """Whether plain data is there, which another plain value can take the place of."""
    if not _plain(place.value) or place.at is At.FIXED:
        return False
    return place.at is At.ITEM or _takes(place.holder, str(place.key))


def _takes(holder: object, name: str) -> bool:
    """Whether an attribute may be set to plain data; the class is asked first, for properties."""
    family = type(holder)
    if getattr(getattr(family, "__dataclass_params__", None), "frozen", False):
        return False
    declared = getattr(family, name, None)
    slot = isinstance(declared, types.MemberDescriptorType)
    return (slot or _plain(declared)) and _plain(getattr(holder, name, None))


def _plain(value: object) -> bool:
    try:
        return is_plain(value)
    except RecursionError:
        return False


def render(state: State) -> str:
    """A state as one line of JSON; the empty state is an empty string."""
    return json.dumps(dict(sorted(state.items()))) if state else ""


def parse(text: str) -> State:
    """The state a server told.

    Raises:
        StateError: it is no JSON object, or nested so deeply that writing it again might fail.
    """
    try:
        state = json.loads(text) if text else {}
        plain = isinstance(state, dict) and is_plain(state)  # needs more stack than json.dumps does
    except (ValueError, RecursionError) as error:
        raise StateError(f"what load_weights left behind cannot be read: {error}") from error
    if not plain:
        raise StateError("what load_weights left behind is no JSON object")
    return dict(state)


def digest(state: State) -> str:
    """SHA-256 (first 16 hex digits) over a state; `none` for the empty one."""
    return hashlib.sha256(render(state).encode()).hexdigest()[:16] if state else "none"


def check(state: State, model: nn.Module) -> None:
    """See that a state can be adopted: only plain attributes and items of what is there.

    Raises:
        StateError: it names something else.
    """
    found = take(model) if state else Inventory()
    for path, value in state.items():
        _place(path, value, found)


def adopt(state: State, model: nn.Module) -> None:
    """Leave the model as its own `load_weights` would have.

    Raises:
        StateError: it names something else than `check` allows, or a value was not taken.
    """
    found = take(model) if state else Inventory()
    for path, value in state.items():
        place = _place(path, value, found)
        if place.at is At.ITEM:
            holder: Any = place.holder
            holder[place.key] = copy.deepcopy(value)
        else:
            module = _module(value, found) if path.endswith(MODULE) else None
            fresh = copy.deepcopy(value) if module is None else module
            setattr(place.holder, str(place.key), fresh)
    now = take(model) if state else Inventory()
    for path, value in state.items():
        if not _stayed(path, value, now):
            raise StateError(f"{path}, which load_weights of the server's model set, did not stay")


def _stayed(path: str, value: object, now: Inventory) -> bool:
    there = now.places.get(path, _GONE).value
    if path.endswith(MODULE):
        return there is _module(value, now)
    return repr(there) == repr(value)


def _module(path: object, found: Inventory) -> nn.Module | None:
    """The module of that path in the tree, if there is one."""
    place = found.places.get(dot(str(path), MODULE), _GONE)
    return place.value if isinstance(place.value, nn.Module) else None


def _place_of_name(path: str, old: object, found: Inventory) -> Place | None:
    """Where another name for a module belongs; None if it can be no name there."""
    around, name = _parted(path)
    holder, module = found.places.get(around, _GONE).holder, _module(old, found)
    if not isinstance(holder, nn.Module) or module is None or hasattr(holder, name):
        return None
    around_itself = any(part is holder for part in module.modules())
    if around_itself or not _is_name(name) or not isinstance(old, str):
        return None
    return Place(holder, At.ATTRIBUTE, name, None)


def _place(path: str, value: object, found: Inventory) -> Place:
    """Where a value of the server's belongs: a place that is there, or a new attribute."""
    if path.endswith(MODULE):
        if (named := _place_of_name(path, value, found)) is None:
            raise StateError(f"load_weights of the server's model set {path}, which is not ours")
        return named
    place = found.places.get(path)
    if place is None:
        prefix, _, name = path.rpartition(".")
        around = found.places.get(dot(prefix, MODULE)) or found.places.get(prefix, _GONE)
        if around is not _GONE and _is_name(name) and not _plain(around.value):
            place = Place(around.value, At.ATTRIBUTE, name, None)
    if place is None or str(place.key).startswith("__") or not _settable(place):
        raise StateError(f"load_weights of the server's model set {path}, which is not ours")
    return place
