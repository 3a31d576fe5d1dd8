"""What a model's own `load_weights` leaves behind besides tensors. Law: known and sent, or refused.

Some models set flags while they read a checkpoint (an EAGLE draft notes whether it owns an
`lm_head`). A model that was filled from a source has not read one, so its server tells it. What is
more than plain data (a new module, a tensor in an attribute) cannot be told: such a model is not
served in raw layout.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any

from torch import nn

from netloader.errors import NetloaderError

State = Mapping[str, Any]
"""Plain values by path: `model.has_own_lm_head` is an attribute of the module `model`."""
NOTHING: State = MappingProxyType({})

_TORCH = frozenset(vars(nn.Module()))
_GONE: Any = object()


class StateError(NetloaderError):
    """A server's state does not fit this model; the message names the attribute."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What `load_weights` did: plain values, and the paths of what is more than that."""

    values: State
    unknown: tuple[str, ...]


class Marks:
    """The attributes of every module of a model, as they were when this was made."""

    def __init__(self, model: nn.Module) -> None:
        self._before = dict(_attributes(model))

    def changes(self, model: nn.Module) -> Changes:
        """What is different now."""
        now = dict(_attributes(model))
        values: dict[str, Any] = {}
        unknown: list[str] = []
        for path in chain(now, (path for path in self._before if path not in now)):
            old, new = self._before.get(path, _GONE), now.get(path, _GONE)
            if old is new or (_plain(old) and _plain(new) and old == new):
                continue
            if _plain(new):
                values[path] = new
            else:
                unknown.append(path)
        return Changes(values, tuple(unknown))


def quantizes_while_loading(module: nn.Module) -> bool:
    """Whether vLLM turns this layer into another one inside `load_weights` (online methods)."""
    return bool(getattr(getattr(module, "quant_method", None), "uses_meta_device", False))


def _attributes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        yield f"{dot}(module)", module
        if quantizes_while_loading(module):  # a client runs the same steps on its placeholders
            continue
        for name, value in vars(module).items():
            if name not in _TORCH:
                yield dot + name, copy.deepcopy(value) if _plain(value) else value


def _settable(module: nn.Module | None, name: str) -> bool:
    """Whether an attribute is plain, or not there yet; the class is asked first, for properties."""
    return _plain(getattr(type(module), name, None)) and _plain(getattr(module, name, None))


def _plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and _plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return type(value) in (bool, int, float, str, type(None))


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
        plain = isinstance(state, dict) and _plain(state)  # needs more stack than json.dumps does
    except (ValueError, RecursionError) as error:
        raise StateError(f"what load_weights left behind cannot be read: {error}") from error
    if not plain:
        raise StateError("what load_weights left behind is no JSON object")
    return dict(state)


def digest(state: State) -> str:
    """SHA-256 (first 16 hex digits) over a state; `none` for the empty one."""
    return hashlib.sha256(render(state).encode()).hexdigest()[:16] if state else "none"


def check(state: State, model: nn.Module) -> None:
    """See that a state can be adopted: only plain attributes of modules that are there.

    Raises:
        StateError: it names something else.
    """
    modules = dict(model.named_modules())
    for path in state:
        prefix, _, name = path.rpartition(".")
        module = modules.get(prefix)
        known = module is not None and name.isidentifier() and not name.startswith("__")
        if not known or name in _TORCH or not _settable(module, name):
            raise StateError(f"load_weights of the server's model set {path}, which is not ours")


def adopt(state: State, model: nn.Module) -> None:
    """Leave the model as its own `load_weights` would have; call `check` first."""
    modules = dict(model.named_modules())
    for path, value in state.items():
        prefix, _, name = path.rpartition(".")
        setattr(modules[prefix], name, value)
