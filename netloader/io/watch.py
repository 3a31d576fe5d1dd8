"""Detects changes of published weights.

Version counters show changes in place, addresses show rebinding. A change through `.data` moves no
counter: the digests of what is sent show it.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from netloader.io.arguments import Weights, named_in, store_of
from netloader.io.memory import version_of
from netloader.io.module_state import ModuleState
from netloader.io.store.base import Store
from netloader.io.store.module import ModuleStore
from netloader.io.tensors import Named
from netloader.io.usage import Usage

Print = tuple[int, object, object, object, int]


class Prints:
    """What named tensors were at one time."""

    def __init__(self, named: Iterable[Named]) -> None:
        self._prints = [(name, _print(tensor)) for name, tensor in named]

    def difference(self, named: Sequence[Named]) -> str:
        """One sentence that names what is different now; empty when nothing is."""
        return "" if self._same(named) else self._moved(named)

    def _same(self, named: Sequence[Named]) -> bool:
        """Whether nothing moved; keeps no prints, so the garbage collector has nothing to do."""
        pairs = zip(named, self._prints, strict=True)
        return len(named) == len(self._prints) and all(
            name == before and _print(tensor) == seen for (name, tensor), (before, seen) in pairs
        )

    def _moved(self, named: Sequence[Named]) -> str:
        now = {name: _print(tensor) for name, tensor in named}
        before = dict(self._prints)
        for name, seen in before.items():
            if name not in now:
                return f"{name} is not there any more"
            if now[name][:-1] != seen[:-1]:
                return f"{name} was replaced"
            if now[name] != seen:
                return f"{name} was written to"
        added = (f"{name} was added" for name in now if name not in before)
        return next(added, "the order of the tensors was changed")


class ModuleUsage:
    """The `Usage` of a module. Keeps the module; any thread may ask."""

    def __init__(self, state: ModuleState) -> None:
        self._state = state
        self._prints = Prints(state.found.tensors)

    def quick(self) -> str:
        """Compare every tensor's address, geometry and version counter, and all values."""
        try:
            now = ModuleState(self._state.module)
        except Exception as error:  # noqa: BLE001 - the module's own code runs here
            return f"the module cannot be read any more: {error}"
        moved = self._prints.difference(now.found.tensors)
        return moved or self._other_value(dict(now.values))

    def thorough(self) -> str:
        """Find nothing: what is in no segment are the values, and `quick` compares them."""
        return ""

    def _other_value(self, now: dict[str, str]) -> str:
        before = dict(self._state.values)
        names = (name for name in now | before if now.get(name) != before.get(name))
        return next((f"{name} was changed" for name in names), "")


class TensorUsage:
    """The `Usage` of a state dict, or of named tensors. Keeps them; any thread may ask."""

    def __init__(self, weights: Mapping[str, Tensor] | Iterable[Named]) -> None:
        self._weights = weights
        self._prints = Prints(named_in(weights))

    def quick(self) -> str:
        """Compare every tensor's address, geometry and version counter."""
        try:
            return self._prints.difference(named_in(self._weights))
        except Exception as error:  # noqa: BLE001 - a mapping may be of any class
            return f"the tensors cannot be read any more: {error}"

    def thorough(self) -> str:
        """Find nothing: every tensor is in segments."""
        return ""


def watched(weights: Weights) -> tuple[Store, Usage | None]:
    """What is to be served, and what tells of changes; nothing does for a store.

    Raises:
        WeightsError: some of it cannot travel.
    """
    if isinstance(weights, nn.Module):
        store = ModuleStore.of(weights)
        return store, ModuleUsage(store.state) if store.state else None
    return store_of(weights), None if isinstance(weights, Store) else TensorUsage(weights)


def _print(tensor: Tensor) -> Print:
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), version_of(tensor))
