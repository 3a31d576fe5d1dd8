"""Tensors that wrap other tensors have no bytes of their own: refused by name, with a remedy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils._pytree import tree_map

from netloader.io import WeightsError, fill
from tests.unit.io.helpers import IDENTITY, asking, closed_port, module_of, sealed, serving


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Halved(Tensor):
    """A tensor kept as two, as torchao and others keep quantized elements and their scales."""

    low: Tensor
    high: Tensor

    @staticmethod
    def __new__(cls, low: Tensor, high: Tensor) -> Self:
        size = (len(low) + len(high), *low.shape[1:])
        wrapper = Tensor._make_wrapper_subclass(cls, size, dtype=low.dtype)
        wrapper.low, wrapper.high = low, high
        return wrapper

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["low", "high"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], *_: object) -> "Halved":
        return cls(inner["low"], inner["high"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it as no class method
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        if func is torch.ops.aten.detach.default:
            return args[0]
        plain = lambda t: torch.cat([t.low, t.high]) if isinstance(t, cls) else t  # noqa: E731
        return func(*tree_map(plain, args), **tree_map(plain, kwargs or {}))


@pytest.mark.usefixtures("alone")
def test_a_sharded_module_is_refused_with_its_parts_as_the_remedy() -> None:
    sharded = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    fully_shard(sharded)

    for attempt in (lambda: serving(sharded).__enter__(), lambda: fill(sharded, [], IDENTITY)):
        with pytest.raises(WeightsError, match=r"^0\.weight has .*DTensor.*tensor\.to_local\(\)"):
            attempt()


@pytest.mark.usefixtures("alone")
def test_the_local_parts_of_a_sharded_module_travel() -> None:
    def locals_of(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        sharded = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        fully_shard(sharded)
        local: list[Any] = list(sharded.parameters())
        return module_of(**{f"p{n}": t.to_local().detach() for n, t in enumerate(local)})

    source, target = locals_of(1), locals_of(2)
    with serving(source) as server:
        outcome = fill(target, [sealed(server).endpoint], IDENTITY, asking())

    assert outcome.ok, outcome.history()
    assert all(map(torch.equal, source.buffers(), target.buffers()))


def test_a_tensor_of_tensors_is_refused_with_what_it_wraps() -> None:
    wrapping = nn.Module()
    wrapping.w = nn.Parameter(Halved(torch.ones(2, 3), torch.ones(2, 3)), requires_grad=False)
    said = r"^w has no plain memory: it is a .*Halved, which wraps other tensors \(low, high\)"

    with pytest.raises(WeightsError, match=said), serving(wrapping):
        pass
    with pytest.raises(WeightsError, match=said):
        fill(wrapping, [closed_port()], IDENTITY, asking())
