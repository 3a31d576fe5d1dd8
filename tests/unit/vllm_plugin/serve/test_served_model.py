"""After a change of the model the new weights are offered, or nothing."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from netloader.fsm.manifest import Extent, Progress, Segment
from netloader.io.store.module import ModuleStore, WeightsError
from netloader.vllm_plugin.load.loaded import taken
from netloader.vllm_plugin.load.offer import _served_model
from netloader.vllm_plugin.serve.served_model import Changed, ServedModel, watched
from tests.unit.io.helpers import bytes_of, contents
from tests.unit.vllm_plugin.helpers import (
    Kernels,
    Model,
    Packed,
    plan,
    post_process,
    reload,
    settings,
)

PATIENCE_S = 30.0


def goods_of(model: nn.Module) -> ServedModel:
    """What is on offer of a freshly loaded model, which is post-processed here."""
    loaded = taken(plan(), model, settings().keeping_at_load, Progress())
    post_process(model)
    served = _served_model(model, plan(), loaded, settings().layout)
    served.usage.begin()
    assert served.usage.wait(PATIENCE_S)
    return served


def held(weights: ModuleStore) -> dict[str, bytes]:
    """What is on offer, by name."""
    manifest = weights.manifest
    found = {}
    for index, spec in enumerate(manifest.tensors):
        whole = Segment(0, (Extent(index, 0, spec.nbytes),), spec.nbytes)
        found[spec.name] = b"".join(weights.views(whole))
    return found


@contextmanager
def changing(served: ServedModel) -> Iterator[Changed]:
    """A change that goes well."""
    with watched(served) as changed, torch.no_grad():
        yield changed


def hooks(model: nn.Module) -> list[str]:
    return [name for layer in model.children() for name in vars(layer.quant_method)]


def test_the_originals_of_a_reload_are_seen_on_their_way() -> None:
    model = Model(1)
    served = goods_of(model)
    with changing(served) as changed:
        reload(model, Model(2))
    assert held(served.renew(changed)) == contents(Model(2))
    assert hooks(model) == []


def test_a_layer_that_nobody_touched_keeps_its_original() -> None:
    model = Model(1)
    served = goods_of(model)
    with changing(served) as changed:
        reload(model.up, Model(2).up)
    expected = {**contents(Model(1)), "up.weight": contents(Model(2))["up.weight"]}
    assert held(served.renew(changed)) == expected


def test_what_nothing_was_done_to_is_as_it_was() -> None:
    model = Model(1)
    served = goods_of(model)
    with changing(served) as changed:
        pass
    assert held(served.renew(changed)) == contents(Model(1))


def test_a_tensor_that_the_kernels_share_is_offered_as_it_is_now() -> None:
    model = Model(1)
    served = goods_of(model)
    with changing(served) as changed:
        model.norm.fill_(7)
    assert held(served.renew(changed)) == {**contents(Model(1)), "norm": bytes_of(model.norm)}


def test_bytes_written_in_the_form_of_the_kernels_are_refused_by_name() -> None:
    model = Model(1)
    served = goods_of(model)
    with changing(served) as changed:
        model.down.weight.mul_(2)
    with pytest.raises(WeightsError, match=r"of 1 parameters, among: down\.weight$"):
        served.renew(changed)


def test_each_change_starts_from_the_one_before_it() -> None:
    # The first change replaced both layers; the second left one as the first had made it.
    model = Model(1)
    served = goods_of(model)
    with changing(served) as changed:
        reload(model, Model(2))
    served = replace(served, weights=served.renew(changed))
    with changing(served) as changed:
        reload(model.up, Model(3).up)
    expected = {**contents(Model(2)), "up.weight": contents(Model(3))["up.weight"]}
    assert held(served.renew(changed)) == expected


def test_an_original_that_was_lost_comes_back_only_with_its_layer() -> None:
    model = Model(1)
    served = goods_of(model)
    with changing(served) as changed:
        model.down.weight.mul_(2)
    with pytest.raises(WeightsError, match=r"down\.weight"):
        served.renew(changed)

    with changing(served) as changed:
        reload(model.up, Model(2).up)
    with pytest.raises(WeightsError, match=r"down\.weight"):  # what we keep of it is too old
        served.renew(changed)

    with changing(served) as changed:
        reload(model.down, Model(2).down)
    both = {name: contents(Model(2))[name] for name in ("up.weight", "down.weight")}
    assert held(served.renew(changed)) == {**contents(Model(1)), **both}


def test_tensors_put_in_the_place_of_those_on_offer_are_refused() -> None:
    model = Model(1)
    served = goods_of(model)
    with changing(served) as changed:
        model.norm.data = model.norm.data * 2  # other memory: what we hold is the old one
    with pytest.raises(WeightsError, match="norm"):
        served.renew(changed)


def test_an_original_of_another_shape_is_refused() -> None:
    model = Model(1)
    served = goods_of(model)
    with changing(served) as changed:
        model.up.weight = nn.Parameter(torch.rand(8, 64), requires_grad=False)
        model.up.quant_method.process_weights_after_loading(model.up)
    with pytest.raises(WeightsError, match=r"more than its bytes: up\.weight shape"):
        served.renew(changed)


class Tied(nn.Module):
    """One layer under two names, and one parameter in two layers."""

    def __init__(self, seed: int, method: Callable[[], Any] = Kernels) -> None:
        super().__init__()
        self.embed = Packed(torch.rand(8, 8, generator=torch.Generator().manual_seed(seed)))
        self.head = self.embed
        self.embed.quant_method = method()


def test_one_layer_under_two_names_stays_one_tensor() -> None:
    model = Tied(1)
    served = goods_of(model)
    with changing(served) as changed:
        reload(model.embed, Tied(2).embed)
    renewed = served.renew(changed)
    assert renewed.manifest == ModuleStore.of(Tied(2)).manifest
    assert held(renewed) == contents(Tied(2))


def test_layers_that_share_a_method_are_told_apart() -> None:
    model, method = Model(1), Kernels()
    model.up.quant_method = model.down.quant_method = method
    served = goods_of(model)
    with changing(served) as changed:
        reload(model, Model(2))
    assert held(served.renew(changed)) == contents(Model(2))
    assert hooks(model) == []


def test_a_method_has_its_own_hook_back_afterwards() -> None:
    model = Model(1)
    own = partial(Kernels.process_weights_after_loading, model.up.quant_method)
    model.up.quant_method.process_weights_after_loading = own
    served = goods_of(model)
    with changing(served):
        pass
    assert model.up.quant_method.process_weights_after_loading is own


def test_the_hooks_are_gone_after_an_exception_too() -> None:
    model = Model(1)
    served = goods_of(model)
    seen: list[list[str]] = []

    def fail() -> None:
        with watched(served):
            seen.append(hooks(model))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [["process_weights_after_loading"] * 2]
    assert hooks(model) == []


def test_a_layer_on_its_way_without_memory_is_no_original() -> None:
    model = Model(1)
    served = goods_of(model)
    place = model.up.weight
    with changing(served) as changed:
        model.up.weight = nn.Parameter(torch.empty(64, 64, device="meta"), requires_grad=False)
        model.up.quant_method.process_weights_after_loading(model.up)
        model.up.weight = place
    assert held(served.renew(changed)) == contents(Model(1))


def test_what_is_on_offer_does_not_keep_its_model_alive() -> None:
    model = Model(1)
    served = goods_of(model)
    gone = weakref.ref(model.up)
    del model
    gc.collect()
    assert gone() is None
    with watched(served):
        pass
    assert held(served.weights) == contents(Model(1))


# -- each half is compared with what was noted before --------------------------------------------


def test_what_was_written_before_the_change_is_not_taken_for_untouched() -> None:
    # The layer is bytewise what it was when the change began, and not what its original became.
    model = Model(1)
    served = goods_of(model)
    model.down.weight.data.mul_(2)
    with changing(served) as changed:
        reload(model.up, Model(2).up)
    with pytest.raises(WeightsError, match=r"among: down\.weight$"):
        served.renew(changed)
    with changing(served) as changed:
        reload(model, Model(3))
    assert held(served.renew(changed)) == contents(Model(3))


def test_layers_that_have_exchanged_their_memory_are_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    served = goods_of(model)
    first, second = (layer.weight for layer in model.children())
    with changing(served) as changed:
        first.data, second.data = second.data, first.data
    with pytest.raises(WeightsError, match=r"0\.weight, 1\.weight"):
        served.renew(changed)


class Untouched(Kernels):
    """vLLM's experts on a CPU: after a reload in place they hold the checkpoint's own form."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        if not hasattr(layer, "packed"):
            super().process_weights_after_loading(layer)
        layer.packed = True  # type: ignore[assignment]


def test_kernels_that_got_the_original_as_it_is_are_refused() -> None:
    model = Model(1)
    model.up.quant_method = Untouched()
    served = goods_of(model)
    with changing(served) as changed:
        reload(model, Model(2))
    with pytest.raises(WeightsError, match=r"among: up\.weight$"):
        served.renew(changed)


class Stale(Kernels):
    """Packs what it is given once, and keeps that ever after."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        if not hasattr(layer, "packed"):
            layer.packed = layer.get_parameter("weight").detach().clone()
        layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)


def test_kernels_that_keep_what_they_had_are_refused() -> None:
    model = Model(1)
    model.up.quant_method = Stale()
    served = goods_of(model)
    with changing(served) as changed:
        model.up.weight = nn.Parameter(Model(2).up.weight.detach(), requires_grad=False)
        model.up.quant_method.process_weights_after_loading(model.up)
    with pytest.raises(WeightsError, match=r"among: up\.weight$"):
        served.renew(changed)


class Beside(Kernels):
    """Leaves a weight where it is, and packs a copy of it for products."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        layer.packed = layer.get_parameter("weight").detach().flip(0)


def beside() -> Model:
    model = Model(1)
    model.up.quant_method = Beside()
    return model


def test_a_copy_that_was_not_made_anew_is_found() -> None:
    # As `model.load_weights` in a worker function does it: no post-processing follows.
    model = beside()
    served = goods_of(model)
    with changing(served) as changed:
        model.up.weight.data.mul_(2)
    with pytest.raises(WeightsError, match=r"among: up$"):
        served.renew(changed)


def test_a_copy_that_was_made_anew_is_good() -> None:
    model = beside()
    served = goods_of(model)
    with changing(served) as changed:
        model.up.weight.data.mul_(2)
        model.up.quant_method.process_weights_after_loading(model.up)
    assert held(served.renew(changed))["up.weight"] == bytes_of(model.up.weight)


def test_a_table_that_was_changed_is_never_offered_again() -> None:
    model = Model(1)
    model.register_buffer("table", torch.rand(16), persistent=False)
    served = goods_of(model)
    for _ in range(2):
        with changing(served) as changed:
            model.get_buffer("table").mul_(2)
        with pytest.raises(WeightsError, match=r"among: table$"):
            served.renew(changed)


def test_what_a_failed_change_has_processed_counts_for_nothing() -> None:
    model = Model(1)
    served = goods_of(model)
    with changing(served) as changed:
        reload(model.up, Model(2).up)
    changed.originals.clear()
    changed.processed.clear()
    with pytest.raises(WeightsError, match=r"among: up\.weight$"):
        served.renew(changed)
