"""Finds out, by walking a model, which parts are derived from weights, and how they are sent.

A model is walked after it was constructed and again after `load_weights`. What is the same at both
times follows from the configuration and from the files that were read to construct it, which the
identity names. What changed is derived from weights: it is sent as a tensor or as a value
(`loadstate`), or the model is not served in raw layout. Post-processing comes later and is vLLM's
own: a client runs it as well, from the same tensors.

State (parameters and persistent buffers) travels always, also of modules that are not in the tree
of modules: vLLM reads the heads of some poolers from files of their own, outside `load_weights`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import vllm
from torch import Tensor, nn

from netloader.io.store.module import Named, WeightsError, named_tensors
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.inspect.inventory import MODULE, Inventory, take
from netloader.vllm_plugin.load import load_state
from netloader.vllm_plugin.load.load_state import State, inside, outermost

SHOWN = 5
"""How many paths a message names."""
NUMBERS = r"\d+"
Shape = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Derived:
    """What `load_weights` did to a model, beside filling its state."""

    values: State
    """Plain values, by path: sent to the client."""
    filled: frozenset[str]
    """Tensors that are no state and hold other bytes than before: to be sent."""
    obstacle: str
    """What can be sent neither as a value nor as a tensor, or ''."""
    found: Inventory
    """The walk that showed it."""


class Built:
    """A model as it was constructed; keeps no tensor of it alive."""

    @inventory.uncollected()
    def __init__(self, model: nn.Module) -> None:
        found = take(model)
        self._marks = load_state.Marks(model, found)
        self._shapes = _shapes(found)
        self._digests = _digests(found)

    @inventory.uncollected()
    def derived(self, model: nn.Module) -> Derived:
        """What is different now that the checkpoint was read."""
        found = take(model)
        changes = self._marks.changes(model, found)
        online = changes.online | load_state.names_in(changes.values)
        now = _shapes(found)
        made = [p for p in now if p not in self._shapes and not inside(p, online)]
        other = [
            path
            for path, shape in self._shapes.items()
            if now.get(path) != shape and not inside(path, online)
        ]
        hidden = [path for path in found.opaque if not inside(path, online)]
        state = [path for path in made if path in found.state]
        left = {*changes.unknown, *made, *other} - {*state, *hidden}
        obstacle = "; ".join(
            [
                *_named("load_weights makes parameters that no client has", state),
                *_named(
                    "nothing can read what is in", [f"{p} ({found.opaque[p]})" for p in hidden]
                ),
                *_named(
                    "load_weights leaves behind more than tensors and plain values",
                    _roots(outermost([*left - {*hidden}])),
                ),
            ]
        )
        return Derived(changes.values, self._filled(found, online), obstacle, found)

    def _filled(self, found: Inventory, online: frozenset[str]) -> frozenset[str]:
        digests = _digests(found)
        before = self._digests
        changed = (p for p in before | digests if before.get(p) != digests.get(p))
        return frozenset(path for path in changed if not inside(path, online))


def _named(what: str, paths: list[str]) -> Iterator[str]:
    if paths:
        more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        yield f"{what}: {', '.join(paths[:SHOWN])}{more}"


def _roots(paths: tuple[str, ...]) -> list[str]:
    """Paths without those of what hangs on a module that is named itself."""
    modules = [path.removesuffix(MODULE) for path in paths if path.endswith(f".{MODULE}")]
    return [p for p in paths if p.endswith(MODULE) or not p.startswith((*modules,))]


def _shapes(found: Inventory) -> dict[str, Shape]:
    return {p: (t.dtype, tuple(t.shape), t.stride()) for p, t in found.tensors.items()}


def _digests(found: Inventory) -> dict[str, str]:
    """Of the tensors that are no state and no view of state."""
    return inventory.digest(Inventory(tensors=dict(_loose(found))))


def _loose(found: Inventory) -> Iterator[Named]:
    state = [tensor for path, tensor in found.tensors.items() if path in found.state]
    storages = {_storage(tensor) for tensor in state if tensor.numel()}
    for path, tensor in found.tensors.items():
        outside = path not in found.state and _storage(tensor) not in storages
        if outside and tensor.numel() and not tensor.is_meta:
            yield path, tensor


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


# -- what travels --------------------------------------------------------------------------------


def travelling(
    model: nn.Module, found: Inventory, filled: frozenset[str], told: State = load_state.NOTHING
) -> list[Named]:
    """What is sent of a model: parameters and persistent buffers, in model order, then the rest.

    What has another name since `load_weights`, as `told`, is sent under its older one: a client
    gives that name when it has received.

    The rest is state that hangs elsewhere, and what `load_weights` of the server has `filled`. What
    has no memory there is left out: vLLM keeps, on the meta device, the layers that it left out.
    """
    names = load_state.names_in(told)
    named = [(name, tensor) for name, tensor in named_tensors(model) if not inside(name, names)]
    tree = {name for name, _ in named}
    rest = {**found.state, **{p: t for p, t in found.tensors.items() if p in filled}}
    beside = ((path, t) for path, t in rest.items() if path not in tree and not t.is_meta)
    beside = ((path, t) for path, t in beside if not inside(path, names))
    return [*named, *sorted(beside, key=_path)]


def beyond_the_tree(model: nn.Module, named: list[Named]) -> list[Named]:
    """Those of the tensors that travel which no ordinary loader would write again."""
    tree = {name for name, _ in named_tensors(model)}
    return [(name, tensor) for name, tensor in named if name not in tree]


def _path(item: Named) -> str:
    return item[0]


# -- how a model was constructed -----------------------------------------------------------------


def constructed(found: Inventory) -> dict[str, int]:
    """Where a model holds tensors that are no state, and what cannot be read: how often, by kind.

    Numbers in paths are left out, and sizes: buffers for work are as long as an engine's limits.
    """
    tensors = found.tensors.items()
    kinds = [(p, f"{t.dtype} of {t.dim()}") for p, t in tensors if p not in found.state]
    kinds += found.opaque.items()
    counted = Counter(f"{re.sub(NUMBERS, '*', path)} {kind}" for path, kind in kinds)
    return dict(sorted(counted.items()))


def fact_of(paths: Mapping[str, int]) -> str:
    """What a server says of how its model was constructed."""
    return json.dumps({"vllm": vllm.__version__, "holds": dict(paths)})


def soft_field(paths: Mapping[str, int]) -> dict[str, str]:
    """The same for an identity: compared where both sides run the same vLLM."""
    text = json.dumps(dict(paths))
    word = inventory.word_of(text.encode())[:16]
    return {f"constructed by vLLM {vllm.__version__}": word}


def check(fact: str, mine: Mapping[str, int]) -> None:
    """Compare how a server's model was constructed with how ours was.

    Raises:
        WeightsError: one of them holds what the other one does not; some are named.
    """
    try:
        said = json.loads(fact) if fact else {}
        theirs = {str(p): int(n) for p, n in said.get("holds", {}).items()}
        same_vllm = said.get("vllm") == vllm.__version__
    except (ValueError, TypeError, AttributeError, RecursionError):
        return  # the difference is in what travels, which the manifest compares
    different = [p for p in sorted(theirs | dict(mine)) if theirs.get(p) != mine.get(p)]
    if same_vllm and different:
        told = [f"{p}: mine {mine.get(p, 0)}, theirs {theirs.get(p, 0)}" for p in different[:SHOWN]]
        raise WeightsError(
            f"the models were constructed to hold different tensors: {'; '.join(told)}; "
            "give both sides the same files beside the weights and the same options"
        )
