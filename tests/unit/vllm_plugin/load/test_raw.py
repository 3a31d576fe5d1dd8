"""The raw snapshot offers what was loaded, or names what it lost."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from netloader.fsm.manifest import segments_of
from netloader.io.comparing import segment_digests
from netloader.io.store.module import ModuleStore, WeightsError, named_tensors
from netloader.vllm_plugin.config.settings import CachePolicy, Settings
from netloader.vllm_plugin.load.raw import Backup, GoneError, RawSnapshot, algorithm_of, policy_for

AUTO = Settings.parse(None)
NOTHING_KEPT = replace(AUTO, weight_cache=CachePolicy.NO)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))


def replaced(layer: nn.Linear) -> torch.Tensor:
    """What kernels do: the same name, shape and dtype, other bytes in other memory."""
    before = layer.weight.detach().clone()
    layer.weight = nn.Parameter(before.flip(0).contiguous(), requires_grad=False)
    return before


def first_layer(module: nn.Module) -> nn.Linear:
    layer = module.get_submodule("0")
    assert isinstance(layer, nn.Linear)
    return layer


def snapshot_of(
    module: nn.Module, settings: Settings = AUTO, known: tuple[str, ...] = ()
) -> RawSnapshot:
    return RawSnapshot(named_tensors(module), settings.keeping, known)


def content(weights: ModuleStore) -> tuple[str, ...]:
    return segment_digests(
        weights, segments_of(weights.manifest, 64 << 20), algorithm_of(AUTO.keeping), 1
    )


def test_untouched_parameters_cost_nothing() -> None:
    module = model()
    kept = snapshot_of(module).after(module)
    assert (kept.cached, kept.cached_bytes) == (frozenset(), 0)
    assert content(kept.weights) == snapshot_of(module).digests


def test_a_replaced_parameter_is_offered_as_it_was_loaded() -> None:
    module = model()
    snapshot = snapshot_of(module)
    before = replaced(first_layer(module))
    kept = snapshot.after(module)
    assert kept.cached == {"0.weight"}
    assert kept.cached_bytes == before.numel() * before.element_size()
    assert content(kept.weights) == snapshot.digests


def test_without_a_cache_a_replaced_parameter_is_named_with_the_setting() -> None:
    module = model()
    snapshot = snapshot_of(module, NOTHING_KEPT)
    replaced(first_layer(module))
    with pytest.raises(GoneError, match=r"0\.weight") as gone:
        snapshot.after(module)
    assert gone.value.names == ("0.weight",)
    assert gone.value.settings == ("WEIGHT_CACHE",)


@pytest.mark.parametrize(
    "turn",
    [
        lambda layer, bias: setattr(layer, "scale", bias.sum().item()),
        lambda layer, bias: setattr(layer, "closure", partial(torch.add, bias.clone())),
        lambda layer, bias: None,
    ],
    ids=["a number", "a closure", "nothing"],
)
def test_a_parameter_that_became_something_else_is_offered_or_named(
    turn: Callable[[nn.Module, torch.Tensor], None],
) -> None:
    for settings in (AUTO, NOTHING_KEPT):
        module = model()
        snapshot = snapshot_of(module, settings)
        layer = first_layer(module)
        turn(layer, layer.bias.detach())
        del layer.bias
        if settings is AUTO:
            kept = snapshot.after(module)
            assert content(kept.weights) == snapshot.digests
        else:
            with pytest.raises(GoneError, match=r"0\.bias"):
                snapshot.after(module)


def test_without_a_cache_a_parameter_wrapped_anew_is_found_by_its_storage() -> None:
    module = model()
    snapshot = snapshot_of(module, NOTHING_KEPT)
    layer = first_layer(module)
    layer.weight = nn.Parameter(layer.weight.data.t(), requires_grad=False)
    kept = snapshot.after(module)
    assert (kept.cached, kept.cached_bytes) == (frozenset(), 0)
    assert content(kept.weights) == snapshot.digests


def test_digests_a_client_verified_are_not_computed_again() -> None:
    assert snapshot_of(model(), known=("known",)).digests == ("known",)


def test_a_model_without_memory_cannot_be_remembered() -> None:
    with pytest.raises(WeightsError, match=r"weight"):
        snapshot_of(nn.Linear(2, 2, device="meta"))


@pytest.mark.parametrize(
    ("name", "dtype", "device", "policy", "setting"),
    [
        ("a.weight", torch.bfloat16, "cpu", CachePolicy.DRAM, "WEIGHT_CACHE"),
        ("a.weight", torch.bfloat16, "meta", CachePolicy.NO, "WEIGHT_CACHE"),  # any other device
        ("a.weight", torch.int8, "meta", CachePolicy.DRAM, "INT8_CACHE"),
        ("b.weight", torch.int8, "cpu", CachePolicy.NO, "INT8_CACHE_NAME"),
    ],
)
def test_which_setting_rules_a_tensor(
    name: str, dtype: torch.dtype, device: str, policy: CachePolicy, setting: str
) -> None:
    settings = replace(AUTO, int8_cache=CachePolicy.DRAM, int8_cache_name=("a.",))
    tensor = torch.zeros(1, dtype=dtype, device=device)
    assert policy_for(name, tensor, settings.keeping) == (policy, setting)


def test_a_backup_puts_back_small_tensors_only() -> None:
    module = nn.ParameterDict(
        {"scale": nn.Parameter(torch.tensor(-1.0)), "big": nn.Parameter(torch.zeros(20_000))}
    )
    backup = Backup(named_tensors(module))
    with torch.no_grad():
        for parameter in module.values():
            parameter.fill_(7)
    backup.restore()
    assert module["scale"].item() == -1.0
    assert module["big"][0].item() == 7.0
