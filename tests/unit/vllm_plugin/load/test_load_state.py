"""What `load_weights` leaves behind is known and told, or the model is not served raw."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from netloader.vllm_plugin.load import load_state
from netloader.vllm_plugin.load.load_state import Changes, Marks, StateError


class Inner(nn.Module):
    default_of_the_class = False

    def __init__(self) -> None:
        super().__init__()
        self.has_own_head = False
        self.sizes = [1, 2]
        self.table: dict[str, float] = {"a": 1}
        self.linear = nn.Linear(2, 2)
        self.kernel: Any = object()

    @property
    def first(self) -> int:
        return self.sizes[0]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.ready = False


def changed_by(act: Callable[[Model], object]) -> Changes:
    model = Model()
    marks = Marks(model)
    act(model)
    return marks.changes(model)


def read_a_checkpoint(model: Model) -> None:
    model.ready = True
    model.inner.has_own_head = True
    model.inner.sizes.append(3)  # in place: the same list object as before
    model.inner.table["b"] = 2.5
    model.inner.note = "new"  # type: ignore[assignment]
    with torch.no_grad():
        model.inner.linear.weight.fill_(1)


def test_what_was_left_behind_is_told_and_adopted() -> None:
    server, client = Model(), Model()
    marks = Marks(server)
    read_a_checkpoint(server)
    changes = marks.changes(server)

    assert changes.unknown == ()
    assert changes.values == {
        "ready": True,
        "inner.has_own_head": True,
        "inner.sizes": [1, 2, 3],
        "inner.table": {"a": 1, "b": 2.5},
        "inner.note": "new",
    }
    state = load_state.parse(load_state.render(changes.values))
    load_state.check(state, client)
    load_state.adopt(state, client)
    assert Marks(client).changes(server) == Changes({}, ("(module)", *_modules()))
    assert (client.ready, client.inner.has_own_head) == (True, True)
    assert (client.inner.sizes, client.inner.table) == ([1, 2, 3], {"a": 1, "b": 2.5})


def _modules() -> tuple[str, ...]:
    """Two models consist of different modules, and each has an object of its own."""
    return ("inner.(module)", "inner.kernel", "inner.linear.(module)")


def test_another_name_of_a_module_is_told_and_adopted() -> None:
    """vllm-ascend's DeepSeek draft does so with the head of its MTP layer."""
    server, client = Model(), Model()
    marks = Marks(server)
    server.head = server.inner.linear
    changes = marks.changes(server)

    assert changes == Changes({"head.(module)": "inner.linear"}, ())
    state = load_state.parse(load_state.render(changes.values))
    before = Marks(client)
    load_state.check(state, client)
    load_state.adopt(state, client)
    assert client.head is client.inner.linear
    assert before.changes(client) == changes
    assert [*client.state_dict()] == [*server.state_dict()]


def test_a_module_with_another_name_may_have_changed() -> None:
    def act(model: Model) -> None:
        model.head = model.inner
        model.inner.has_own_head = True

    assert changed_by(act).values == {"head.(module)": "inner", "inner.has_own_head": True}


def test_another_name_that_is_no_identifier_is_not_told() -> None:
    changes = changed_by(lambda model: model.inner.add_module("0", model.inner.linear))
    assert "inner.0.(module)" in changes.unknown


def test_reading_tensors_alone_leaves_nothing_behind() -> None:
    def fill(model: Model) -> None:
        with torch.no_grad():
            model.inner.linear.weight.fill_(1)

    assert changed_by(fill) == Changes({}, ())
    assert load_state.render({}) == ""
    assert load_state.parse("") == {}


@pytest.mark.parametrize(
    ("act", "path"),
    [
        (lambda m: setattr(m.inner, "extra", nn.Identity()), "inner.extra.(module)"),
        (lambda m: setattr(m.inner, "linear", nn.Linear(2, 2)), "inner.linear.(module)"),
        (lambda m: setattr(m.inner, "tensor", torch.zeros(1)), "inner.tensor"),
        (lambda m: setattr(m.inner, "kernel", object()), "inner.kernel"),
        (lambda m: setattr(m.inner, "table", {"a": torch.zeros(1)}), "inner.table"),
        (lambda m: setattr(m.inner, "table", {1: 1}), "inner.table"),
        (lambda m: setattr(m.inner, "sizes", (1, 2, 3)), "inner.sizes"),
        (lambda m: delattr(m.inner, "has_own_head"), "inner.has_own_head"),
        (lambda m: delattr(m, "inner"), "inner.(module)"),
    ],
    ids=["new module", "other module", "tensor", "object", "dict of a tensor", "dict by number",
         "tuple", "attribute gone", "module gone"],
)  # fmt: skip
def test_what_is_more_than_plain_data_is_named(act: Callable[[Model], object], path: str) -> None:
    changes = changed_by(act)
    assert changes.values == {}
    assert path in changes.unknown


def test_layers_that_quantize_while_loading_are_passed_over() -> None:
    def quantize(model: Model) -> None:
        vars(model.inner)["quantized"] = torch.zeros(1)

    model = Model()
    model.inner.kernel = None
    vars(model.inner)["quant_method"] = SimpleNamespace(uses_meta_device=True)
    marks = Marks(model)
    quantize(model)
    assert marks.changes(model) == Changes({}, ())
    assert changed_by(quantize).unknown == ("inner.quantized",)


# -- what a server says --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "elsewhere.flag",
        "inner.elsewhere.flag",
        "inner.__class__",
        "__dict__",
        "inner.not a name",
        "inner.",
        "",
        "inner.kernel",
        "inner.forward",
        "inner.linear",
        "inner.linear.weight",
        "inner.first",
        "inner.linear._modules",
        "inner._parameters",
        "training",
    ],
)
def test_a_state_that_names_what_is_not_a_plain_attribute_is_refused(path: str) -> None:
    with pytest.raises(StateError, match="which is not ours"):
        load_state.check({path: {"x": 1}}, Model())


@pytest.mark.parametrize(
    ("path", "old"),
    [
        ("head.(module)", "elsewhere"),
        ("head.(module)", "inner.kernel"),
        ("head.(module)", "inner.linear.weight"),
        ("head.(module)", 1),
        ("elsewhere.head.(module)", "inner.linear"),
        ("inner.kernel.head.(module)", "inner.linear"),
        ("inner.linear.(module)", "inner"),
        ("inner.linear.(module)", "inner.linear"),
        ("inner.forward.(module)", "inner.linear"),
        ("inner.first.(module)", "inner.linear"),
        ("inner.has_own_head.(module)", "inner.linear"),
        ("inner.__class__.(module)", "inner.linear"),
        ("inner._modules.(module)", "inner.linear"),
        ("inner.0.(module)", "inner.linear"),
        ("(module)", "inner.linear"),
        (".(module)", "inner.linear"),
        ("inner.linear.head.(module)", "inner"),  # it would be inside itself
        ("head.(module)", ""),
    ],
)
def test_a_name_for_what_is_no_module_or_where_none_can_be_is_refused(path: str, old: Any) -> None:
    with pytest.raises(StateError, match="which is not ours"):
        load_state.check({path: old}, Model())


@pytest.mark.parametrize("path", ["ready", "inner.has_own_head", "inner.default_of_the_class"])
def test_a_state_that_names_plain_attributes_fits(path: str) -> None:
    model = Model()
    load_state.check({path: True}, model)
    load_state.adopt({path: True}, model)
    prefix, _, name = path.rpartition(".")
    assert getattr(model.get_submodule(prefix), name) is True


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "5", "null", '"text"', "nonsense", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"],
    ids=["half", "list", "number", "null", "string", "word", "deep", "long"],
)
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(StateError, match="load_weights"):
        load_state.parse(text)


@pytest.mark.parametrize("depth", [100, 400, 700, 900, 950, 980])
def test_a_state_that_can_be_read_can_be_worked_with(depth: int) -> None:
    try:
        state = load_state.parse('{"ready": ' + "[" * depth + "]" * depth + "}")
    except StateError:
        return
    _deeper(20, lambda: load_state.digest(state))  # the identity is built further down


def _deeper(frames: int, act: Callable[[], object]) -> None:
    if frames:
        _deeper(frames - 1, act)
    else:
        act()


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1), PLAIN, max_size=4), st.randoms())
def test_equal_states_have_equal_digests_and_travel(state: dict[str, Any], rng: Any) -> None:
    items = list(state.items())
    rng.shuffle(items)
    assert load_state.digest(dict(items)) == load_state.digest(state)
    assert load_state.digest(load_state.parse(load_state.render(state))) == load_state.digest(state)
    assert load_state.parse(json.dumps(state)) == state


def test_other_states_have_other_digests() -> None:
    states: list[dict[str, Any]] = [{}, {"a": 1}, {"a": 2}, {"a": True}, {"b": 1}, {"a": "1"}]
    assert len({load_state.digest(state) for state in states}) == len(states)
