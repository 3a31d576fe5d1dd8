"""Whatever a module holds arrives, or is refused by name: both sides give the same answers."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netloader.fsm.reasons import Reason
from netloader.io import WeightsError, fill
from netloader.io.store.module import ModuleStore
from tests.unit.io.helpers import IDENTITY, asking, random, sealed, serving

X = torch.arange(12.0).reshape(3, 4)


def weight(seed: int) -> Tensor:
    """Finite numbers."""
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))


class Layer(nn.Module):
    """A product with a weight, and whatever a subclass does with it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight(seed))

    def forward(self, x: Tensor) -> Tensor:
        return torch.mul(x @ self.weight, self.factor())

    def factor(self) -> Any:
        """What the weight is multiplied by."""
        return 1.0


class Scaled(Layer):
    """A number in extra state."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.scale: Any = float(seed)

    def factor(self) -> Any:
        return self.scale

    def get_extra_state(self) -> Any:
        return {"scale": self.scale, "notes": ("a", None, b"\0", [1, True]), "type": torch.half}

    def set_extra_state(self, state: Any) -> None:
        self.scale = state["scale"]


class ScaledByTensor(Scaled):
    """A tensor in extra state, which a module that never ran does not have yet."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.scale = weight(seed)[0] if seed == 1 else None


class ByKey(Layer):
    """A module that saves a packed parameter of its own making."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.packed: list[Any] = [weight(seed + 1), float(seed)]

    def factor(self) -> Any:
        return self.packed[0].sum() * self.packed[1]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "packed"] = tuple(self.packed)

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        self.packed = list(state.pop(prefix + "packed"))
        super()._load_from_state_dict(state, prefix, *rest)
        rest[-2].clear()


class Passing(Layer):
    """A buffer that is not persistent."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.register_buffer("table", weight(seed + 1)[0], persistent=False)

    def factor(self) -> Any:
        return self.get_buffer("table")


class Box:
    """An object with a tensor, in a slot."""

    __slots__ = ("content",)

    def __init__(self, content: Any) -> None:
        self.content = content


class Hiding(Layer):
    """Tensors behind an attribute."""

    def __init__(
        self, seed: int, hide: Callable[[Tensor], Any], find: Callable[[Any], Any]
    ) -> None:
        super().__init__(seed)
        self.place = hide(weight(seed + 1)[0].clone())
        self.find = find

    def factor(self) -> Any:
        return self.find(self.place)


def closure(tensor: Tensor) -> Callable[[], Tensor]:
    """A function that has a tensor in a cell."""
    return lambda: tensor


def hooked(seed: int) -> nn.Module:
    """A weight that only a forward hook knows."""
    layer, shift = Layer(seed), weight(seed + 1)[0]
    layer.register_forward_hook(lambda module, args, output: output + shift)
    return layer


def detached(tensor: Tensor) -> nn.Module:
    """A module with extra state that is no submodule of anything."""
    return Scaled(int(tensor[0] * 100))


HIDING: dict[str, Callable[[int], nn.Module]] = {
    "extra state": Scaled,
    "tensor in extra state": ScaledByTensor,
    "packed parameter": ByKey,
    "buffer that is not persistent": Passing,
    "attribute": lambda s: Hiding(s, lambda t: t, lambda p: p),
    "list": lambda s: Hiding(s, lambda t: [1, [t]], lambda p: p[1][0]),
    "dictionary": lambda s: Hiding(s, lambda t: {"a": (t,)}, lambda p: p["a"][0]),
    "object": lambda s: Hiding(s, Box, lambda p: p.content),
    "partial": lambda s: Hiding(s, lambda t: functools.partial(torch.mul, t), lambda p: p(2)),
    "closure": lambda s: Hiding(s, closure, lambda p: p()),
    "method": lambda s: Hiding(s, lambda t: t.sum, lambda p: p()),
    "numpy": lambda s: Hiding(s, lambda t: t.numpy(), torch.from_numpy),
    "distribution": lambda s: Hiding(
        s, lambda t: torch.distributions.Normal(t, t.abs() + 1), lambda p: p.mean * p.stddev
    ),
    "detached module": lambda s: Hiding(s, lambda t: [detached(t)], lambda p: p[0](X).sum()),
    "hook": hooked,
}


@pytest.mark.parametrize("build", HIDING.values(), ids=list(HIDING))
def test_what_is_hidden_arrives(build: Callable[[int], nn.Module]) -> None:
    source, target = build(1), build(2)
    assert not torch.equal(source(X), target(X)) if build is not ScaledByTensor else True

    with serving(source) as server:
        outcome = fill(target, [sealed(server).endpoint], IDENTITY, asking())

    assert outcome.ok, outcome.history()
    assert torch.equal(source(X), target(X))


def test_large_tensors_of_extra_state_travel_as_tensors() -> None:
    class Large(Layer):
        def __init__(self, seed: int) -> None:
            super().__init__(seed)
            self.big = random(300, 300, seed=seed)

        def get_extra_state(self) -> Any:
            return [self.big]

        def set_extra_state(self, state: Any) -> None:
            self.big = state[0]

    source, target = Large(1), Large(2)
    with serving(source) as server:
        outcome = fill(target, [sealed(server).endpoint], IDENTITY, asking())

    assert outcome.nbytes == 300 * 300 * 4 + 64
    assert torch.equal(source.big.view(torch.uint8), target.big.view(torch.uint8))


class Odd(Layer):
    """Extra state of any kind."""

    def __init__(self, seed: int, state: Any) -> None:
        super().__init__(seed)
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


@pytest.mark.parametrize("state", [{"a": [object()]}, {1.5: 2}, weight(1).expand(9999, 4, 4)[:, 0]])
def test_extra_state_that_cannot_travel_is_refused_by_name(state: Any) -> None:
    with pytest.raises(WeightsError, match=r"^_extra_state in the state_dict cannot travel: "):
        ModuleStore.of(Odd(1, state))


@pytest.mark.parametrize(
    ("hide", "named"),
    [
        (lambda t: {t}, "place, a builtins.set, holds tensors in no certain order"),
        (lambda t: np.broadcast_to(t.numpy(), (2, 4)), "place, a numpy.ndarray, is read-only"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(hide: Callable[[Tensor], Any], named: str) -> None:
    with pytest.raises(WeightsError, match=named):
        ModuleStore.of(Hiding(1, hide, lambda p: p))


def test_a_module_that_does_not_take_its_extra_state_is_not_filled() -> None:
    class Deaf(Scaled):
        def set_extra_state(self, state: Any) -> None:
            pass

    with serving(Scaled(1)) as server:
        outcome = fill(Deaf(2), [sealed(server).endpoint], IDENTITY, asking())

    assert not outcome.ok
    assert outcome.weights_dirty
    assert outcome.attempts[0].reason is Reason.DIGEST_MISMATCH
    assert "does not show the _extra_state" in outcome.attempts[0].detail


def test_a_module_whose_extra_state_changes_its_tensors_is_not_filled() -> None:
    class Eager(Scaled):
        def set_extra_state(self, state: Any) -> None:
            super().set_extra_state(state)
            self.weight.data.mul_(2)

    with serving(Scaled(1)) as server:
        outcome = fill(Eager(2), [sealed(server).endpoint], IDENTITY, asking())

    assert outcome.attempts[0].reason is Reason.DIGEST_MISMATCH


def test_a_tensor_that_only_one_side_has_is_named() -> None:
    source, target = Hiding(1, lambda t: [t], lambda p: p[0]), Hiding(2, lambda t: [], lambda p: 1)
    with serving(source) as server:
        outcome = fill(target, [sealed(server).endpoint], IDENTITY, asking())

    (difference,) = outcome.attempts[0].differences
    assert (difference.field, difference.mine) == ("tensor place[0]", "(absent)")
    assert "registered buffer" in difference.remedy


def test_optimizers_and_classes_are_not_entered() -> None:
    layer = Layer(1)
    vars(layer)["optimizer"] = optimizer = torch.optim.Adam(layer.parameters())
    layer(X).sum().backward()
    optimizer.step()

    assert [spec.name for spec in ModuleStore.of(layer).manifest.tensors] == ["weight"]


def test_objects_that_refer_to_each_other_are_entered_once() -> None:
    layer = Hiding(1, lambda t: [t], lambda p: p[0])
    layer.place.append(layer.place)
    layer.place.append(Box(layer))

    assert [s.name for s in ModuleStore.of(layer).manifest.tensors] == ["weight", "place[0]"]
