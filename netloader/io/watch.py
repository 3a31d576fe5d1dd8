"""Whether a module still computes with what was published of it. Law: look again at the module.

Version counters tell of changes in place, addresses of rebinding. A change through `.data` moves no
counter; the digests of what is sent tell of that one.
"""

from torch import Tensor

from netloader.io.describe import WeightsError
from netloader.io.hidden import Found, look
from netloader.io.module_state import ModuleState

Print = tuple[int, object, object, object, int]
NO_COUNTER = -1


class ModuleUsage:
    """The `Usage` of a module. Keeps the module; any thread may ask."""

    def __init__(self, state: ModuleState) -> None:
        self._state = state
        self._prints = _prints(state.found)

    def quick(self) -> str:
        """Compare every tensor's address, geometry and version counter: some µs for each."""
        try:
            now = _prints(look(self._state.module))
        except WeightsError as error:
            return f"the module was changed: {error}"
        if now == self._prints:
            return ""
        for name, seen in self._prints.items():
            if name not in now:
                return f"{name} is not in the module any more"
            if now[name][:-1] != seen[:-1]:
                return f"{name} was replaced"
            if now[name] != seen:
                return f"{name} was written to"
        return f"{next(iter(now.keys() - self._prints.keys()))} was added"

    def thorough(self) -> str:
        """Compare the values too, which no digest covers."""
        try:
            now = ModuleState(self._state.module).values
        except Exception as error:  # noqa: BLE001 - the module's own code runs here
            return f"the module cannot be read any more: {error}"
        if now == self._state.values:
            return ""
        before = dict(self._state.values)
        changed = next((name for name, value in now if before.get(name) != value), "extra state")
        return f"{changed} was changed"


def _prints(found: Found) -> dict[str, Print]:
    return {name: _print(tensor) for name, tensor in found.tensors}


def _print(tensor: Tensor) -> Print:
    version = NO_COUNTER if tensor.is_inference() else tensor._version  # noqa: SLF001 - no other
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), version)
