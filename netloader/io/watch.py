"""Whether a module still computes with what was published of it. Law: look again at the module.

Version counters tell of changes in place, addresses of rebinding. A change through `.data` moves no
counter; the digests of what is sent tell of that one.
"""

from torch import Tensor

from netloader.io.hidden import Found
from netloader.io.memory import version_of
from netloader.io.module_state import ModuleState

Print = tuple[int, object, object, object, int]


class ModuleUsage:
    """The `Usage` of a module. Keeps the module; any thread may ask."""

    def __init__(self, state: ModuleState) -> None:
        self._state = state
        self._prints = [(name, _print(tensor)) for name, tensor in state.found.tensors]

    def quick(self) -> str:
        """Compare every tensor's address, geometry and version counter, and all values."""
        try:
            now = ModuleState(self._state.module)
        except Exception as error:  # noqa: BLE001 - the module's own code runs here
            return f"the module cannot be read any more: {error}"
        moved = "" if self._same(now.found) else self._moved(now.found)
        return moved or self._other_value(dict(now.values))

    def thorough(self) -> str:
        """Find nothing: what is in no segment are the values, and `quick` compares them."""
        return ""

    def _same(self, now: Found) -> bool:
        """Whether nothing moved; keeps no prints, so the garbage collector has nothing to do."""
        pairs = zip(now.tensors, self._prints, strict=True)
        return len(now.tensors) == len(self._prints) and all(
            name == before and _print(tensor) == seen for (name, tensor), (before, seen) in pairs
        )

    def _moved(self, found: Found) -> str:
        now = {name: _print(tensor) for name, tensor in found.tensors}
        before = dict(self._prints)
        for name, seen in before.items():
            if name not in now:
                return f"{name} is not in the module any more"
            if now[name][:-1] != seen[:-1]:
                return f"{name} was replaced"
            if now[name] != seen:
                return f"{name} was written to"
        return next((f"{name} was added" for name in now if name not in before), "")

    def _other_value(self, now: dict[str, str]) -> str:
        before = dict(self._state.values)
        names = (name for name in now | before if now.get(name) != before.get(name))
        return next((f"{name} was changed" for name in names), "")


def _print(tensor: Tensor) -> Print:
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), version_of(tensor))
