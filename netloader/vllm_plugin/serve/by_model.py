"""Values that belong to models, and end with them."""

import weakref
from typing import Generic, TypeVar

from torch import nn

Value = TypeVar("Value")


class ByModel(Generic[Value]):
    """One value for each model, in the order in which they came. Keeps no model alive.

    Not thread-safe: the caller holds a lock where threads share it.
    """

    def __init__(self) -> None:
        self._known: list[tuple[weakref.ref[nn.Module], Value]] = []

    def put(self, model: nn.Module, value: Value) -> None:
        """Set the value of a model; values of models that are gone are dropped."""
        self._known = [
            (reference, known)
            for reference, known in self._known
            if (other := reference()) is not None and other is not model
        ]
        self._known.append((weakref.ref(model), value))

    def get(self, model: nn.Module) -> Value | None:
        """The value of a model, if it has one."""
        return next((value for known, value in self.items() if known is model), None)

    def items(self) -> list[tuple[nn.Module, Value]]:
        """The models that are still there, with their values."""
        found = ((reference(), value) for reference, value in self._known)
        return [(model, value) for model, value in found if model is not None]

    def clear(self) -> None:
        """Forget all of them."""
        self._known.clear()
