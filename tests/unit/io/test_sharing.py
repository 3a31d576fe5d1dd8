"""Which tensors share bytes: only those whose bytes do, however their storages are cut."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from netloader.fsm.reasons import Reason
from netloader.io import fill
from netloader.io.sharing import MAX_PAIRS_OF
from netloader.io.store.module import ModuleStore
from tests.unit.io.helpers import IDENTITY, asking, contents, module_of, random, sealed, serving

Make = Callable[[int], dict[str, Tensor]]
Build = Callable[[int], nn.Module]
MANY = MAX_PAIRS_OF + 6


def room(seed: int, columns: int = 6) -> Tensor:
    return random(5, columns, seed=seed)


def interleaved(seed: int) -> dict[str, Tensor]:
    """Every other element of one buffer, twice."""
    line = room(seed).reshape(-1)
    return {"even": line[::2], "odd": line[1::2]}


def columns(seed: int) -> dict[str, Tensor]:
    """A matrix of three, side by side, as a fused projection is cut."""
    q, k, v = room(seed).chunk(3, dim=1)
    return {"q": q, "k": k, "v": v}


def halves(seed: int) -> dict[str, Tensor]:
    """One buffer cut in two."""
    line = room(seed).reshape(-1)
    return {"low": line[:11], "high": line[11:]}


def many(seed: int) -> dict[str, Tensor]:
    """More columns of one matrix than are compared with each other."""
    return {f"c{n}": column for n, column in enumerate(room(seed, MANY).unbind(1))}


def partly(seed: int) -> dict[str, Tensor]:
    """Two that have some elements in common."""
    line = room(seed).reshape(-1)
    return {"low": line[:20], "high": line[10:]}


def shares(tensors: dict[str, Tensor]) -> list[int]:
    return [spec.shares for spec in ModuleStore.of(module_of(**tensors)).manifest.tensors]


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each with a memory of its own."""
    own = {
        name: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for name, t in tensors.items()
    }
    return {name: tensor.copy_(tensors[name]) for name, tensor in own.items()}


@pytest.mark.parametrize("make", [interleaved, columns, halves])
def test_views_without_a_byte_in_common_are_separate(make: Make) -> None:
    assert set(shares(make(1))) == {-1}


def test_views_with_bytes_in_common_are_tied() -> None:
    assert shares(partly(1)) == [-1, 0]
    assert shares({**columns(1), **partly(2)})[3:] == [-1, 3]


def test_a_whole_ties_its_parts_to_each_other() -> None:
    low, high = halves(1).values()
    assert shares({"low": low, "high": high, "whole": low.as_strided((30,), (1,))}) == [-1, 0, 0]


def test_one_column_more_than_the_others_is_tied_to_what_it_covers() -> None:
    matrix = room(1)
    assert shares({"a": matrix[:, :3], "b": matrix[:, 3:], "c": matrix[:, 2:4]}) == [-1, 0, 0]


def test_of_more_strided_views_than_are_compared_all_are_tied_and_arrive() -> None:
    source, target = module_of(**many(1)), module_of(**many(2))
    assert shares(many(1)) == [-1, *[0] * (MANY - 1)]
    with serving(source) as server:
        outcome = fill(target, [sealed(server).endpoint], IDENTITY, asking())

    assert outcome.ok, outcome.history()
    assert contents(target) == contents(source)


@pytest.mark.parametrize("make", [interleaved, columns, halves])
@pytest.mark.parametrize("turn", [1, -1], ids=["one buffer is served", "one buffer is filled"])
def test_one_buffer_and_many_are_the_same_model(make: Make, turn: int) -> None:
    source, target = (module_of(**t) for t in (make(1), apart(make(2)))[::turn])
    with serving(source) as server:
        outcome = fill(target, [sealed(server).endpoint], IDENTITY, asking())

    assert outcome.ok, outcome.history()
    assert contents(target) == contents(source)


@pytest.mark.parametrize("turn", [1, -1], ids=["tied on the server", "tied on the client"])
def test_bytes_in_common_on_one_side_only_are_refused_with_a_remedy(turn: int) -> None:
    source, target = (module_of(**t) for t in (partly(1), apart(partly(2)))[::turn])
    with serving(source) as server:
        outcome = fill(target, [sealed(server).endpoint], IDENTITY, asking())

    (difference,) = outcome.attempts[0].differences
    assert outcome.attempts[0].reason is Reason.MANIFEST_MISMATCH
    assert difference.field == "high shares"
    assert {difference.mine, difference.theirs} == {"low", "no other"}
    assert difference.remedy == "tie these tensors on both sides, or on neither"


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def flattened(seed: int) -> nn.Module:
    """A network whose parameters are views of one flat buffer, as ZeRO and apex keep them."""
    model = network(seed)
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    at = 0
    for p in model.parameters():
        p.data = flat[at : at + p.numel()].view_as(p)
        at += p.numel()
    return model


@pytest.mark.parametrize(
    ("served", "filled"),
    [(flattened, network), (network, flattened), (flattened, flattened)],
    ids=["flat to separate", "separate to flat", "flat to flat"],
)
def test_flat_parameters_are_the_same_model_as_separate_ones(served: Build, filled: Build) -> None:
    source, target = served(1), filled(2)
    with serving(source) as server:
        outcome = fill(target, [sealed(server).endpoint], IDENTITY, asking())

    x = torch.ones(2, 8)
    assert outcome.ok, outcome.history()
    assert torch.equal(target(x), source(x))
