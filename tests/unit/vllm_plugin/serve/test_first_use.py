"""What an engine moves, casts or copies at its first request, which changes no weights."""

import gc
import threading
from collections.abc import Callable

import pytest
import torch

from netloader.fsm.manifest import Progress
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.load.loaded import taken
from netloader.vllm_plugin.load.offer import _served_model
from netloader.vllm_plugin.serve.served_model import Changed
from tests.unit.vllm_plugin.helpers import plan, post_process, settings
from tests.unit.vllm_plugin.serve.test_usage_record import PATIENCE_S, Engine, noted, offered, write


def cast(dtype: torch.dtype) -> Callable[[Engine], None]:
    def at_first_use(model: Engine) -> None:  # as vLLM does with tables of rotary embeddings
        model.table = model.get_buffer("table").to(dtype)

    return at_first_use


def move(model: Engine) -> None:
    model.table = model.get_buffer("table").clone()


def copy_for_kernels(model: Engine) -> None:
    model.late = model.norm.detach().to(torch.float16)  # as vLLM's CPU attention does with sinks


def copy_in_its_place(model: Engine) -> None:
    model.reader.impl.norm = model.norm.detach().to(torch.float16)


FIRST_USES = (
    cast(torch.bfloat16),
    cast(torch.float16),
    move,
    copy_for_kernels,
    copy_in_its_place,
)


@pytest.mark.parametrize("change", FIRST_USES)
def test_what_an_engine_puts_elsewhere_at_its_first_use_is_no_change(
    change: Callable[[Engine], None],
) -> None:
    model = Engine()
    usage = noted(model)
    change(model)
    gc.collect()
    others = [torch.rand(16) for _ in range(64)]  # where the table was
    assert (usage.quick(), usage.thorough(), usage.awake()) == ("", "", "")
    model.table = model.get_buffer("table").clone()
    assert (usage.quick(), usage.thorough()) == ("", "")
    assert len(others) == 64


@pytest.mark.parametrize("first", [None, *FIRST_USES])
@pytest.mark.parametrize("how", ["replaced", "written"])
def test_a_table_with_other_values_is_a_change_wherever_it_is(
    first: Callable[[Engine], None] | None, how: str
) -> None:
    model = Engine()
    usage = noted(model)
    if first is not None:
        first(model)
        assert usage.quick() == ""
    if how == "replaced":
        model.table = model.get_buffer("table") * 2
    else:
        model.get_buffer("table").mul_(2)
    assert "table" in usage.quick()
    assert "the table table was changed" in usage.thorough()


def test_a_cast_loses_digits_and_they_do_not_come_back() -> None:
    model = Engine()
    usage = noted(model)
    model.table = model.get_buffer("table").to(torch.bfloat16).float()
    assert "the table table was changed" in usage.quick()


def test_a_copy_for_kernels_that_is_of_another_time_is_a_change() -> None:
    model = Engine()
    usage = noted(model)
    copy_for_kernels(model)
    assert usage.thorough() == ""
    write(lambda model: model.norm)(model)
    assert "late, which the kernels use" in usage.thorough()


def test_what_takes_the_place_of_a_weight_and_is_no_copy_of_it_is_a_change() -> None:
    model = Engine()
    usage = noted(model)
    model.reader.impl.norm = model.norm.detach().to(torch.float16) * 2
    assert "norm, which the kernels use" in usage.thorough()


def test_until_a_table_was_digested_its_place_means_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, go = Engine(), threading.Event()
    loaded = taken(plan(), model, settings().keeping_at_load, Progress())
    post_process(model)
    usage = _served_model(model, plan(), loaded, settings().layout).usage
    digest = inventory.digest

    def later(found: inventory.Inventory) -> dict[str, str]:
        assert go.wait(PATIENCE_S)
        return digest(found)

    monkeypatch.setattr(inventory, "digest", later)
    usage.settle()
    cast(torch.bfloat16)(model)
    assert usage.quick() == ""
    go.set()
    assert usage.wait(PATIENCE_S)
    assert (usage.quick(), usage.thorough()) == ("", "")
    model.table = model.get_buffer("table") * 2
    assert "the table table was changed" in usage.quick()


@pytest.mark.parametrize("change", FIRST_USES)
def test_after_its_first_use_an_engine_has_the_same_weights_on_offer(
    change: Callable[[Engine], None],
) -> None:
    model = Engine()
    served = offered(model)
    change(model)
    assert served.renew(Changed()).manifest == served.weights.manifest
    assert (served.usage.quick(), served.usage.thorough()) == ("", "")
