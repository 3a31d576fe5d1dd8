"""Give one object of vLLM's another method or attribute for a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

Linear: TypeAlias = Callable[..., Any]


@contextmanager
def replaced_on(holder: Any, name: str, value: object) -> Iterator[None]:
    """Have an object answer `name` with `value` inside the block, and afterwards as before.

    Its class is left alone. What other code has put there inside the block stays.
    """
    own = vars(holder)
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        if own.get(name) is value:
            del own[name]
            own.update(before)


@contextmanager
def attribute_set(holder: Any, name: str, value: object) -> Iterator[None]:
    """Have an attribute of an object set inside the block, by way of a property if it is one.

    An attribute that is None or not there is deleted afterwards.
    """
    before = getattr(holder, name, None)
    setattr(holder, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(holder, name)
        else:
            setattr(holder, name, before)


def change_packed_product(layer: Any, change: Callable[[Linear], Linear]) -> None:
    """Change what a linear layer computes with the weight that oneDNN has packed for it.

    vLLM keeps that product in the layer as a function. Where it does not, nothing is changed.
    """
    if hasattr(layer, "cpu_linear"):
        layer.cpu_linear = change(layer.cpu_linear)
