"""A change of what the engine uses is named, whatever way it was made; nothing else is."""

import gc
import threading
import weakref
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netloader.fsm.manifest import Progress
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.load.loaded import taken
from netloader.vllm_plugin.load.offer import _served_model
from netloader.vllm_plugin.serve.served_model import ServedModel
from netloader.vllm_plugin.serve.usage_record import INTERRUPTED, UsageRecord
from tests.unit.vllm_plugin.helpers import Model, plan, post_process, settings

PATIENCE_S = 30.0


class Handle:
    """Weights that are packed where nobody can read them."""

    def __init__(self, weight: Tensor) -> None:
        self._packed = weight.clone()

    def __del__(self) -> None:
        """Free them, as vLLM's own do; that is what they are recognised by."""


Handle.__module__ = "vllm._custom_ops"


class Reader(nn.Module):
    """A layer whose kernels compute with a parameter of another one."""

    def __init__(self, norm: Tensor) -> None:
        super().__init__()
        self.scratch = torch.ones(3)
        self.impl = SimpleNamespace(norm=norm)


class Engine(Model):
    """A model with something of every kind that kernels hold."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed)
        self.register_buffer("table", torch.rand(16), persistent=False)
        self.scale = 0.5
        self.locks = torch.zeros(4, dtype=torch.int32)
        self.late: Any = None
        self.reader: Any = Reader(self.norm)

    def finish(self) -> None:
        """Pack what was loaded, beside post-processing."""
        packed = self.norm.detach() * 2
        self.multiply: Any = partial(torch.mul, packed)
        self.handle: Any = Handle(self.norm)


def offered(model: nn.Module) -> ServedModel:
    """What is on offer of a model that is loaded, post-processed and noted here."""
    loaded = taken(plan(), model, settings().keeping_at_load, Progress())
    post_process(model)
    if isinstance(model, Engine):
        model.finish()
    served = _served_model(model, plan(), loaded, settings().layout)
    served.usage.begin()
    served.usage.settle()
    assert served.usage.wait(PATIENCE_S)
    return served


def noted(model: nn.Module) -> UsageRecord:
    """The usage record of the same."""
    return offered(model).usage


def rebind(model: Engine) -> None:
    model.norm.data = model.norm.data.clone()


def copy(model: Engine) -> None:
    with torch.no_grad():
        model.norm.copy_(model.norm)


def swap(model: Engine) -> None:
    up, down = model.up.weight, model.down.weight
    up.data, down.data = down.data, up.data


def remove(model: Engine) -> None:
    del model.up.weight


def replace_layer(model: Engine) -> None:
    model.up = Model(2).up


def replace_parameter(model: Engine) -> None:
    model.norm = nn.Parameter(model.norm.detach().clone(), requires_grad=False)


def free(model: Engine) -> None:
    model.norm.untyped_storage().resize_(0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (rebind, "norm was put into other memory"),
        (copy, "norm was written in place"),
        (swap, "weight was put into other memory"),
        (remove, "up.weight is no longer part of the model"),
        (replace_layer, "the module up was replaced"),
        (replace_parameter, "norm was put into other memory"),
    ],
)
def test_a_quick_look_names_what_was_rebound_or_written(
    change: Callable[[Engine], None], named: str
) -> None:
    model = Engine()
    usage = noted(model)
    assert usage.quick() == ""
    change(model)
    assert named in usage.quick()


def write(tensor: Callable[[Engine], Tensor]) -> Callable[[Engine], None]:
    def through_data(model: Engine) -> None:
        tensor(model).data.mul_(2)

    return through_data


def repack(model: Engine) -> None:
    model.handle = Handle(model.norm)


def rescale(model: Engine) -> None:
    model.scale = 0.75


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (write(lambda model: model.up.weight), "up.weight, which the kernels use, was changed"),
        (write(lambda model: model.multiply.args[0]), "multiply(0), which the kernels use"),
        (write(lambda model: model.get_buffer("table")), "the table table was changed"),
        (repack, "handle, which the kernels use, was changed"),
        (rescale, "the number scale was changed"),
    ],
)
def test_a_thorough_look_names_what_no_client_checks(
    change: Callable[[Engine], None], named: str
) -> None:
    model = Engine()
    usage = noted(model)
    assert (usage.quick(), usage.thorough()) == ("", "")
    change(model)
    assert usage.quick() == ""  # only bytes tell
    assert named in usage.thorough()


def count(model: Engine) -> None:
    model.locks += 1


def add_later(model: Engine) -> None:
    model.late = Model(3)


def adapt(model: Engine) -> None:
    wrapper = nn.Module()
    wrapper.base_layer = model.up
    wrapper.lora = torch.rand(4)
    model.up = wrapper  # type: ignore[assignment]


@pytest.mark.parametrize("change", [count, adapt])
def test_what_an_engine_does_every_day_is_no_change(change: Callable[[Engine], None]) -> None:
    model = Engine()
    usage = noted(model)
    change(model)
    assert (usage.quick(), usage.thorough()) == ("", "")


def test_memory_that_is_gone_is_named() -> None:
    model = Engine()
    usage = noted(model)
    free(model)
    assert "norm" in usage.quick()


def test_until_the_engine_has_its_final_shape_nothing_is_a_change() -> None:
    # vLLM puts the target's embedding in the place of a draft's, and wraps adapters.
    model = Engine()
    loaded = taken(plan(), model, settings().keeping_at_load, Progress())
    post_process(model)
    model.finish()
    usage = _served_model(model, plan(), loaded, settings().layout).usage
    usage.begin()
    replace_layer(model)
    assert (usage.quick(), usage.thorough()) == ("", "")
    usage.settle()
    assert usage.wait(PATIENCE_S)
    assert (usage.quick(), usage.thorough()) == ("", "")
    replace_layer(model)
    assert usage.quick() == "the module up was replaced"


def test_a_sleep_may_write_the_same_bytes_and_no_others() -> None:
    model = Engine()
    usage = noted(model)
    copy(model)
    assert usage.awake() == ""
    assert usage.quick() == ""
    copy(model)
    write(lambda model: model.up.weight)(model)
    assert "up.weight" in usage.awake()


def test_asleep_before_anything_was_known_nothing_can_be_said() -> None:
    model = Engine()
    usage = UsageRecord(model, [])
    assert "before it was known" in usage.awake()


def test_whoever_asks_while_memory_is_taken_away_is_not_kept_waiting() -> None:
    model = Engine()
    usage = noted(model)
    usage.pause()
    assert usage.thorough() == INTERRUPTED
    usage.resume()
    assert usage.thorough() == ""


def test_a_pause_waits_for_the_tensor_that_is_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reading, go = Engine(), threading.Event(), threading.Event()
    usage = noted(model)
    digest = inventory.digest

    def slow(found: inventory.Inventory) -> dict[str, str]:
        reading.set()
        assert go.wait(PATIENCE_S)
        return digest(found)

    monkeypatch.setattr(inventory, "digest", slow)
    asking = threading.Thread(target=usage.thorough)
    asking.start()
    assert reading.wait(PATIENCE_S)
    pausing = threading.Thread(target=usage.pause)
    pausing.start()
    pausing.join(0.2)
    assert pausing.is_alive()
    go.set()
    pausing.join(PATIENCE_S)
    asking.join(PATIENCE_S)
    assert not pausing.is_alive()


def test_an_engine_whose_weights_are_away_is_not_looked_at() -> None:
    """A reload has them all on the meta device for a moment: then there is nothing to digest."""
    model = Engine()
    usage = noted(model)
    usage.pause()
    model.to("meta")
    model.reader = model.multiply = model.handle = None
    with pytest.raises(InterruptedError, match="taken away"):
        usage.look()


def test_a_pause_waits_for_an_examination_until_it_is_noted() -> None:
    model = Engine()
    usage = noted(model)
    with usage.examination():
        pausing = threading.Thread(target=usage.pause)
        pausing.start()
        pausing.join(0.2)
        assert pausing.is_alive()
    pausing.join(PATIENCE_S)
    assert not pausing.is_alive()
    with pytest.raises(InterruptedError), usage.examination():
        pass


def test_what_cannot_be_examined_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    model = Engine()
    usage = noted(model)
    monkeypatch.setattr(inventory, "digest", broken)
    assert "ZeroDivisionError" in usage.thorough()
    usage.begin()
    assert not usage.wait(PATIENCE_S)
    assert "ZeroDivisionError" in usage.quick()


def test_a_usage_record_does_not_keep_its_model_alive() -> None:
    model = Engine()
    usage = noted(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert usage.quick()
