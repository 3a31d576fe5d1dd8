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
from netloader.vllm_plugin import inventory
from netloader.vllm_plugin.goods import Changed, Goods
from netloader.vllm_plugin.offer import _goods, taken
from netloader.vllm_plugin.witness import INTERRUPTED, Witness
from tests.unit.vllm_plugin.helpers import CONFIG, Model, errand, post_process, settings

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


def offered(model: nn.Module) -> Goods:
    """What is on offer of a model that is loaded, post-processed and noted here."""
    loaded = taken(errand(), model, settings(), Progress())
    post_process(model)
    if isinstance(model, Engine):
        model.finish()
    goods = _goods(model, errand(), loaded, settings(), CONFIG)
    goods.witness.begin()
    goods.witness.settle()
    assert goods.witness.wait(PATIENCE_S)
    return goods


def noted(model: nn.Module) -> Witness:
    """The witness of the same."""
    return offered(model).witness


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
    witness = noted(model)
    assert witness.quick() == ""
    change(model)
    assert named in witness.quick()


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
    witness = noted(model)
    assert (witness.quick(), witness.thorough()) == ("", "")
    change(model)
    assert witness.quick() == ""  # only bytes tell
    assert named in witness.thorough()


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
    witness = noted(model)
    change(model)
    assert (witness.quick(), witness.thorough()) == ("", "")


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
    witness = noted(model)
    change(model)
    gc.collect()
    others = [torch.rand(16) for _ in range(64)]  # where the table was
    assert (witness.quick(), witness.thorough(), witness.awake()) == ("", "", "")
    model.table = model.get_buffer("table").clone()
    assert (witness.quick(), witness.thorough()) == ("", "")
    assert len(others) == 64


@pytest.mark.parametrize("first", [None, *FIRST_USES])
@pytest.mark.parametrize("how", ["replaced", "written"])
def test_a_table_with_other_values_is_a_change_wherever_it_is(
    first: Callable[[Engine], None] | None, how: str
) -> None:
    model = Engine()
    witness = noted(model)
    if first is not None:
        first(model)
        assert witness.quick() == ""
    if how == "replaced":
        model.table = model.get_buffer("table") * 2
    else:
        model.get_buffer("table").mul_(2)
    assert "table" in witness.quick()
    assert "the table table was changed" in witness.thorough()


def test_a_cast_loses_digits_and_they_do_not_come_back() -> None:
    model = Engine()
    witness = noted(model)
    model.table = model.get_buffer("table").to(torch.bfloat16).float()
    assert "the table table was changed" in witness.quick()


def test_a_copy_for_kernels_that_is_of_another_time_is_a_change() -> None:
    model = Engine()
    witness = noted(model)
    copy_for_kernels(model)
    assert witness.thorough() == ""
    write(lambda model: model.norm)(model)
    assert "late, which the kernels use" in witness.thorough()


def test_what_takes_the_place_of_a_weight_and_is_no_copy_of_it_is_a_change() -> None:
    model = Engine()
    witness = noted(model)
    model.reader.impl.norm = model.norm.detach().to(torch.float16) * 2
    assert "norm, which the kernels use" in witness.thorough()


def test_until_a_table_was_digested_its_place_means_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, go = Engine(), threading.Event()
    loaded = taken(errand(), model, settings(), Progress())
    post_process(model)
    witness = _goods(model, errand(), loaded, settings(), CONFIG).witness
    digest = inventory.digest

    def later(found: inventory.Inventory) -> dict[str, str]:
        assert go.wait(PATIENCE_S)
        return digest(found)

    monkeypatch.setattr(inventory, "digest", later)
    witness.settle()
    cast(torch.bfloat16)(model)
    assert witness.quick() == ""
    go.set()
    assert witness.wait(PATIENCE_S)
    assert (witness.quick(), witness.thorough()) == ("", "")
    model.table = model.get_buffer("table") * 2
    assert "the table table was changed" in witness.quick()


@pytest.mark.parametrize("change", FIRST_USES)
def test_after_its_first_use_an_engine_has_the_same_weights_on_offer(
    change: Callable[[Engine], None],
) -> None:
    model = Engine()
    goods = offered(model)
    change(model)
    assert goods.renew(Changed()).manifest == goods.weights.manifest
    assert (goods.witness.quick(), goods.witness.thorough()) == ("", "")


def test_memory_that_is_gone_is_named() -> None:
    model = Engine()
    witness = noted(model)
    free(model)
    assert "norm" in witness.quick()


def test_until_the_engine_has_its_final_shape_nothing_is_a_change() -> None:
    # vLLM puts the target's embedding in the place of a draft's, and wraps adapters.
    model = Engine()
    loaded = taken(errand(), model, settings(), Progress())
    post_process(model)
    model.finish()
    witness = _goods(model, errand(), loaded, settings(), CONFIG).witness
    witness.begin()
    replace_layer(model)
    assert (witness.quick(), witness.thorough()) == ("", "")
    witness.settle()
    assert witness.wait(PATIENCE_S)
    assert (witness.quick(), witness.thorough()) == ("", "")
    replace_layer(model)
    assert witness.quick() == "the module up was replaced"


def test_a_sleep_may_write_the_same_bytes_and_no_others() -> None:
    model = Engine()
    witness = noted(model)
    copy(model)
    assert witness.awake() == ""
    assert witness.quick() == ""
    copy(model)
    write(lambda model: model.up.weight)(model)
    assert "up.weight" in witness.awake()


def test_asleep_before_anything_was_known_nothing_can_be_said() -> None:
    model = Engine()
    witness = Witness(model, [])
    assert "before it was known" in witness.awake()


def test_whoever_asks_while_memory_is_taken_away_is_not_kept_waiting() -> None:
    model = Engine()
    witness = noted(model)
    witness.pause()
    assert witness.thorough() == INTERRUPTED
    witness.resume()
    assert witness.thorough() == ""


def test_a_pause_waits_for_the_tensor_that_is_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reading, go = Engine(), threading.Event(), threading.Event()
    witness = noted(model)
    digest = inventory.digest

    def slow(found: inventory.Inventory) -> dict[str, str]:
        reading.set()
        assert go.wait(PATIENCE_S)
        return digest(found)

    monkeypatch.setattr(inventory, "digest", slow)
    asking = threading.Thread(target=witness.thorough)
    asking.start()
    assert reading.wait(PATIENCE_S)
    pausing = threading.Thread(target=witness.pause)
    pausing.start()
    pausing.join(0.2)
    assert pausing.is_alive()
    go.set()
    pausing.join(PATIENCE_S)
    asking.join(PATIENCE_S)
    assert not pausing.is_alive()


def test_what_cannot_be_examined_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    model = Engine()
    witness = noted(model)
    monkeypatch.setattr(inventory, "digest", broken)
    assert "ZeroDivisionError" in witness.thorough()
    witness.begin()
    assert not witness.wait(PATIENCE_S)
    assert "ZeroDivisionError" in witness.quick()


def test_a_witness_does_not_keep_its_model_alive() -> None:
    model = Engine()
    witness = noted(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert witness.quick()
