"""What is derived from weights travels or is told, wherever it hangs; or nothing is offered."""

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vllm
from torch import Tensor, nn

from netloader.io.store.module import WeightsError
from netloader.vllm_plugin.inspect import inventory
from netloader.vllm_plugin.load import load_state, provenance
from netloader.vllm_plugin.load.provenance import Built, Derived
from tests.unit.io.helpers import bytes_of


class Row:
    __slots__ = ("scale", "words")

    def __init__(self) -> None:
        self.scale = torch.zeros(2)
        self.words: Any = 1


class Model(nn.Module):
    """State in every hiding place, as it is constructed."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(2, 2)
        self.register_buffer("table", torch.zeros(3), persistent=False)
        self.view = self.up.weight.detach()[0]
        self.plain = torch.zeros(2)
        self.poolers: dict[str, Any] = {"embed": SimpleNamespace(head=nn.Linear(2, 2), rate=0.5)}
        self.rows = deque([Row()])
        self.listed: list[Any] = [torch.zeros(1), 5]
        self.base = torch.zeros(8)
        self.part = self.base[2:4]
        closed = torch.zeros(2)
        self.call = lambda x: x + closed
        self.handle: Any = None
        self.pair: Any = (1, 2)


def derived_by(act: Callable[[Any], object]) -> Derived:
    torch.manual_seed(0)
    model = Model()
    built = Built(model)
    with torch.no_grad():
        act(model)
    return built.derived(model)


def closure_of(model: Any) -> Tensor:
    found: Tensor = inventory.take(model).tensors["call(closed)"]
    return found


@pytest.mark.parametrize(
    ("act", "filled"),
    [
        (lambda m: m.up.weight.fill_(3), set()),  # travels anyway, and its view with it
        (lambda m: m.poolers["embed"].head.weight.fill_(3), set()),
        (lambda m: m.table.fill_(3), {"table"}),
        (lambda m: m.plain.data.fill_(3), {"plain"}),
        (lambda m: m.rows[0].scale.copy_(torch.ones(2)), {"rows[0].scale"}),
        (lambda m: m.listed.__setitem__(0, torch.ones(1)), {"listed[0]"}),
        (lambda m: setattr(m, "plain", torch.ones(2)), {"plain"}),
        (lambda m: closure_of(m).fill_(3), {"call(closed)"}),
        (lambda m: m.part.fill_(3), {"base", "part"}),
        (lambda m: setattr(m, "view", torch.ones(2)), {"view"}),  # a view of state no more
        (lambda m: setattr(m, "plain", m.up.bias.detach()), {"plain"}),  # and now it is one
    ],
)
def test_a_tensor_that_changed_is_to_be_sent(
    act: Callable[[Any], object], filled: set[str]
) -> None:
    derived = derived_by(act)
    assert (dict(derived.values), set(derived.filled), derived.obstacle) == ({}, filled, "")


@pytest.mark.parametrize(
    ("act", "values"),
    [
        (lambda m: setattr(m.poolers["embed"], "rate", 0.25), {"poolers[embed].rate": 0.25}),
        (lambda m: setattr(m.rows[0], "words", [1]), {"rows[0].words": [1]}),
        (lambda m: m.listed.__setitem__(1, 6), {"listed[1]": 6}),
        (lambda m: setattr(m.up, "fresh", True), {"up.fresh": True}),
        (lambda m: setattr(m.poolers["embed"], "fresh", "a"), {"poolers[embed].fresh": "a"}),
        (lambda m: setattr(m, "pair", (1, 2)), {}),
        (lambda m: setattr(m, "head", m.up), {"head.(module)": "up"}),
    ],
)
def test_a_plain_value_that_changed_is_told_and_adopted(
    act: Callable[[Any], object], values: dict[str, Any]
) -> None:
    derived = derived_by(act)
    assert (derived.values, derived.obstacle) == (values, "")
    client = Model()
    built = Built(client)
    told = load_state.parse(load_state.render(derived.values))
    load_state.check(told, client)
    load_state.adopt(told, client)
    assert built.derived(client).values == values


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (
            lambda m: setattr(m.up, "gate", nn.Parameter(torch.ones(1))),
            "makes parameters that no client has: up.gate",
        ),
        (
            lambda m: setattr(m.poolers["embed"].head, "gate", nn.Parameter(torch.ones(1))),
            "makes parameters that no client has: poolers[embed].head.gate",
        ),
        (lambda m: setattr(m, "extra", torch.ones(1)), "plain values: extra"),
        (lambda m: m.listed.append(torch.ones(1)), "plain values: listed[2]"),
        (lambda m: setattr(m.up.weight, "scale", 0.5), "plain values: up.weight.scale"),
        (lambda m: m.poolers.update(tied=SimpleNamespace(head=m.up)), "values: poolers[tied]"),
        (lambda m: m.listed.append(7), "plain values: listed[2]"),
        (lambda m: m.poolers.update(more=SimpleNamespace(a=torch.ones(1))), "poolers[more]"),
        (lambda m: setattr(m, "plain", torch.ones(3)), "plain values: plain"),
        (lambda m: setattr(m, "plain", torch.ones(2, dtype=torch.int8)), "plain values: plain"),
        (lambda m: setattr(m, "plain", None), "plain values: plain"),
        (lambda m: delattr(m, "table"), "plain values: table"),
        (lambda m: setattr(m, "pair", (1, 3)), "plain values: pair"),
        (lambda m: setattr(m, "call", lambda x: x), "plain values: call"),
        (lambda m: setattr(m, "handle", torch.Generator()), "handle (torch._C.Generator)"),
        (lambda m: setattr(m.poolers["embed"], "head", nn.Linear(2, 2)), "poolers[embed].head"),
    ],
)
def test_what_a_client_cannot_have_is_named(act: Callable[[Any], object], said: str) -> None:
    assert said in derived_by(act).obstacle


def test_a_handle_that_was_there_before_hides_what_the_checkpoint_did_to_it() -> None:
    model = Model()
    model.handle = torch.Generator()
    assert "can read" in Built(model).derived(model).obstacle


def test_what_travels_is_all_state_then_what_was_filled_in_an_order_of_its_own() -> None:
    model = Model()
    names = [
        n for n, _ in provenance.travelling(model, inventory.take(model), frozenset({"plain"}))
    ]
    assert names == [
        "up.weight",
        "up.bias",
        "plain",
        "poolers[embed].head.bias",
        "poolers[embed].head.weight",
    ]


def test_what_has_another_name_travels_once() -> None:
    """A client receives before it gives the name, and would not know the second one."""
    model = Model()
    built = Built(model)
    before = provenance.travelling(model, inventory.take(model), frozenset())
    model.head = model.up
    derived = built.derived(model)
    named = provenance.travelling(model, derived.found, derived.filled, derived.values)
    assert [name for name, _ in named] == [name for name, _ in before]


def test_building_keeps_no_tensor_alive() -> None:
    model = Model()
    built = Built(model)
    place = model.plain.untyped_storage()
    before = place._weak_ref()
    model.plain = torch.ones(2)
    del place
    assert torch.UntypedStorage._expired(before)
    assert built.derived(model).filled == {"plain"}


def test_copies_of_what_no_loader_writes_again_cover_all_of_it() -> None:
    model = Model()
    named = provenance.travelling(model, inventory.take(model), frozenset({"table"}))
    beyond = provenance.beyond_the_tree(model, named)
    assert {name for name, _ in beyond} == {
        "table",
        "poolers[embed].head.bias",
        "poolers[embed].head.weight",
    }
    assert all(bytes_of(tensor) == bytes_of(dict(named)[name]) for name, tensor in beyond)


# -- how the two sides were constructed ----------------------------------------------------------


def holds(**attributes: Any) -> dict[str, int]:
    model = Model()
    vars(model).update(attributes)
    return provenance.constructed(inventory.take(model))


def test_models_that_were_constructed_alike_may_differ_in_sizes_only() -> None:
    mine, theirs = holds(work=torch.zeros(4)), holds(work=torch.zeros(9))
    provenance.check(provenance.fact_of(theirs), mine)
    assert provenance.soft_field(mine) == provenance.soft_field(theirs)


@pytest.mark.parametrize("only", ["mine", "theirs"])
def test_a_tensor_that_only_one_side_was_constructed_with_is_named(only: str) -> None:
    sides = {"mine": holds(), "theirs": holds(), only: holds(head=torch.zeros(4))}
    with pytest.raises(WeightsError, match=r"head torch.float32 of 1: mine \d, theirs \d"):
        provenance.check(provenance.fact_of(sides["theirs"]), sides["mine"])
    assert provenance.soft_field(sides["mine"]) != provenance.soft_field(sides["theirs"])


def test_another_vllm_builds_its_models_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = holds()
    monkeypatch.setattr(vllm, "__version__", "0.99")
    fact = provenance.fact_of(holds(head=torch.zeros(4)))
    field = provenance.soft_field(mine)
    monkeypatch.undo()
    provenance.check(fact, mine)
    assert field.keys() != provenance.soft_field(mine).keys()


@pytest.mark.parametrize("fact", ["", "{", "[]", "5", '{"holds": 5}', '{"holds": {"a": "x"}}'])
def test_a_source_may_say_nonsense(fact: str) -> None:
    provenance.check(fact, holds())
