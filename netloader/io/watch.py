"""Whether a module still computes with what was published of it. Law: look again at the module.

Version counters tell of changes in place, addresses of rebinding. A change through `.data` moves no
counter; the digests of what is sent tell of that one.
"""

from netloader.io.hidden import Found
from netloader.io.module_state import ModuleState

Print = tuple[int, object, object, object, int]
NO_COUNTER = -1


class ModuleUsage:
    """The `Usage` of a module. Keeps the module; any thread may ask."""

    def __init__(self, state: ModuleState) -> None:
        self._state = state
        self._prints = _prints(state.found)

    def quick(self) -> str:
        """Compare every tensor's address, geometry and version counter, and all values."""
        try:
            now = ModuleState(self._state.module)
        except Exception as error:  # noqa: BLE001 - the module's own code runs here
            return f"the module cannot be read any more: {error}"
        return self._moved(_prints(now.found)) or self._other_value(dict(now.values))

    def thorough(self) -> str:
        """Find nothing: what is in no segment are the values, and `quick` compares them."""
        return ""

    def _moved(self, now: dict[str, Print]) -> str:
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

    def _other_value(self, now: dict[str, str]) -> str:
        before = dict(self._state.values)
        names = (name for name in now | before if now.get(name) != before.get(name))
        return next((f"{name} was changed" for name in names), "")


def _prints(found: Found) -> dict[str, Print]:
    return {
        name: (
            tensor.data_ptr(),
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
            NO_COUNTER if tensor.is_inference() else tensor._version,  # noqa: SLF001 - no other
        )
        for name, tensor in found.tensors
    }
