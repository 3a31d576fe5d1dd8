"""What a source says becomes the plan; what it should not say costs a line in the log."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from netloader.config import Endpoint
from netloader.fsm.identity import Identity
from netloader.fsm.messages import Description
from netloader.io.describe import Described
from netloader.log import capture, get_logger
from netloader.vllm_plugin.config.settings import LayoutChoice, Settings
from netloader.vllm_plugin.identity import reading
from netloader.vllm_plugin.identity.identity import DRAFT, PROCESSED, RAW, TARGET
from netloader.vllm_plugin.identity.reading import read_config
from netloader.vllm_plugin.load.display import table_of
from netloader.vllm_plugin.load.plan import LoadPlan, plan_load
from netloader.vllm_plugin.log_base import LOG_BASE
from tests.unit.vllm_plugin.helpers import events, line_of

SOURCES = (Endpoint("10.0.0.1", 1), Endpoint("10.0.0.2", 2))
LOGGER = get_logger("client", LOG_BASE)


class HfConfig:
    architectures = ("Tiny",)
    tie_word_embeddings = False

    def to_dict(self) -> dict[str, object]:
        return {"hidden_size": 8}


def model_config(role: str = TARGET) -> Any:
    return SimpleNamespace(
        model="somewhere", runner_type=role, dtype=torch.bfloat16, quantization=None,
        hf_config=HfConfig(),
    )  # fmt: skip


def parallel(**changes: Any) -> Any:
    plain = dict.fromkeys(
        ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "world_size",
         "prefill_context_parallel_size", "decode_context_parallel_size"), 1,
    )  # fmt: skip
    eplb = SimpleNamespace(num_redundant_experts=0)
    ranks = {"data_parallel_rank": 0, "data_parallel_index": 0}
    off = {"enable_expert_parallel": False, "enable_eplb": False}
    workers = {"worker_cls": "auto", "worker_extension_cls": ""}
    more = {**off, **workers, "eplb_config": eplb, **ranks, **plain}
    return SimpleNamespace(**{**more, **changes})


def vllm_config(device: str = "cpu", **changes: Any) -> Any:
    return SimpleNamespace(
        parallel_config=parallel(**changes),
        device_config=SimpleNamespace(device=device),
        cache_config=SimpleNamespace(cache_dtype="auto"),
        additional_config={},
    )


def planned(
    options: Settings, ask: Callable[..., Described], config: Any = None, model: Any = None
) -> LoadPlan:
    """The plan for a model, from vLLM's configuration of it."""
    local = read_config(config or vllm_config(), model or model_config(), options.model)
    return plan_load(local, options, ask, LOGGER)


def told(
    facts: Mapping[str, Any],
    role: str = TARGET,
    device: str = "cpu",
    sources: Sequence[Endpoint] = SOURCES,
    **changes: Any,
) -> LoadPlan:
    """The plan of a client whose first source says this."""
    options = replace(Settings.parse({}), sources={0: tuple(sources)}, **changes)

    def ask(asked: Sequence[Endpoint], known: Identity) -> Described:
        assert known.hard["role"] == role
        whole = Identity({**known.hard, "config.hidden_size": "8"})
        return Described(Description(whole, facts), tuple(reversed(asked)))

    return planned(options, ask, vllm_config(device), model_config(role))


def no_one(*_: object) -> Described:
    raise AssertionError("there is nobody to ask")


def test_what_a_source_says_becomes_the_plan() -> None:
    facts = {"load_state": '{"model.has_own": true}', "unfilled": '["b", "a"]', "layout": "raw"}
    target, draft = told(facts), told(facts, DRAFT)
    assert (target.role, draft.role) == (TARGET, DRAFT)
    assert target.sources == (SOURCES[1], SOURCES[0])
    assert target.state == {"model.has_own": True}
    assert (target.unfilled, draft.unfilled) == (frozenset(), frozenset({"a", "b"}))
    assert (target.layout, target.path, target.rank, target.ranks) == (RAW, "somewhere", 0, (0,))
    assert target.identity.hard["load_state"] != told({}).identity.hard["load_state"] == "none"


def test_parameters_that_no_checkpoint_fills_do_not_travel() -> None:
    module = nn.Linear(2, 2)
    draft = told({"unfilled": '["bias", "elsewhere"]'}, DRAFT)
    assert [name for name, _ in draft.tensors(module)] == ["weight"]


@pytest.mark.parametrize(
    ("theirs", "choice", "device", "layout"),
    [
        ("processed", LayoutChoice.AUTO, "cuda", PROCESSED),
        ("processed", LayoutChoice.PROCESSED, "cuda", PROCESSED),
        ("processed", LayoutChoice.RAW, "cuda", RAW),
        ("processed", LayoutChoice.AUTO, "cpu", RAW),
        ("raw", LayoutChoice.PROCESSED, "cuda", RAW),
        ("another", LayoutChoice.AUTO, "cuda", RAW),
    ],
)
def test_the_layout_is_the_sources_where_it_can_be_had(
    theirs: str, choice: LayoutChoice, device: str, layout: str
) -> None:
    facts = {"layout": theirs}
    assert told(facts, device=device, layout=choice).layout == layout


def test_without_sources_nobody_is_asked() -> None:
    def ask(*_: object) -> Described:
        raise AssertionError

    options = Settings.parse({"SOURCE": [{"device_id": 5, "sources": ["10.0.0.1:1"]}]})
    lonely = planned(options, ask)
    assert (lonely.sources, lonely.state, lonely.layout) == ((), {}, RAW)


def test_a_bug_in_asking_costs_a_line_and_the_sources_are_still_tried() -> None:
    def ask(*_: object) -> Described:
        raise ZeroDivisionError

    options = replace(Settings.parse({}), sources={0: SOURCES})
    with capture() as lines:
        asked = planned(options, ask)
    assert events(lines) == ["netloader.driver.error"]
    assert (asked.sources, asked.state) == (SOURCES, {})


ODD = ["{", "5", "null", "true", '"text"', "[" * 100_000, "9" * 5_000, "[1, null, {}]", "1e999"]


@pytest.mark.parametrize("role", [TARGET, DRAFT])
@pytest.mark.parametrize("text", [*ODD, '{"a": 1}', "[]"])
@pytest.mark.parametrize(
    "fact", ["load_state", "unfilled", "layout", "untied_by_checkpoint", "answers"]
)
def test_whatever_a_source_says_the_plan_is_made(fact: str, text: str, role: str) -> None:
    with capture() as lines:
        made = told({fact: text}, role)
        assert isinstance(made.identity, Identity)
    assert set(events(lines)) <= {"netloader.source.odd"}
    assert len(lines) <= 1
    assert made.unfilled == frozenset()


@pytest.mark.parametrize(("fact", "role"), [("load_state", TARGET), ("unfilled", DRAFT)])
@pytest.mark.parametrize("text", ODD)
def test_what_cannot_be_read_is_a_line(fact: str, role: str, text: str) -> None:
    with capture() as lines:
        told({fact: text}, role)
    (line,) = lines
    assert line["event"] == "netloader.source.odd"
    assert len(line["netloader.detail"]) < 300


def test_a_huge_list_of_names_costs_nothing() -> None:
    names = [f"parameter.{i}" for i in range(100_000)]
    draft = told({"unfilled": json.dumps(names)}, DRAFT)
    assert [name for name, _ in draft.tensors(nn.Linear(2, 2))] == ["weight", "bias"]


# -- sources that are another model --------------------------------------------------------------


def asked_of(*configs: str | None, **facts: str) -> tuple[LoadPlan, list[dict[str, Any]]]:
    """The plan of a client whose sources say these configs, and its log; None says nothing."""
    sources = tuple(Endpoint("10.0.0.1", n + 1) for n in range(len(configs)))
    options = replace(Settings.parse({}), sources={0: sources})

    def ask(asked: Sequence[Endpoint], known: Identity) -> Described:
        assert not any(name.startswith("config") for name in known.hard)
        for number, source in enumerate(asked):
            size = configs[source.port - 1]
            if size is not None:
                whole = Identity({**known.hard, "config.hidden_size": size})
                tried, untried = asked[:number], asked[number + 1 :]
                order = (source, *untried, *tried)
                return Described(Description(whole, facts), order, untried=tuple(untried))
        return Described(None, tuple(asked))

    with capture() as lines:
        made = planned(options, ask)
    return made, lines


def test_a_source_that_is_another_model_is_passed_over_and_named() -> None:
    made, lines = asked_of(None, "9", "8", "7", load_state='{"model.own": true}')
    assert [source.port for source in made.sources] == [3, 4, 1]
    assert made.state == {"model.own": True}
    line = line_of(lines, "netloader.source.differs")
    assert line["netloader.source"] == "10.0.0.1:2"
    assert line["netloader.field"] == "'config.hidden_size'"
    assert (line["netloader.mine"], line["netloader.theirs"]) == ("'8'", "'9'")


def test_what_another_model_says_is_not_taken_up_and_the_reasons_are_kept() -> None:
    made, _ = asked_of("9", "7", load_state='{"model.own": true}')
    assert (made.sources, made.state) == ((), {})
    assert made.refused is not None
    assert made.refused.history() == (
        "10.0.0.1:1: identity_mismatch (differing: config.hidden_size); "
        "10.0.0.1:2: identity_mismatch (differing: config.hidden_size)"
    )
    assert "config.hidden_size" in table_of(made.refused)


ADOPTED = ("tie_word_embeddings",)
"""What a client takes over from its server before it builds its model."""


def written(holder: Any) -> None:
    """Write something else into every setting, as vLLM does with some while it builds a model."""
    for name, value in [*vars(holder).items()]:
        if isinstance(value, SimpleNamespace):
            written(value)
        elif name not in ADOPTED:
            setattr(holder, name, value + 1 if type(value) is int else f"{value} written")


@pytest.mark.parametrize("role", [TARGET, DRAFT])
def test_building_a_model_makes_no_other_one_of_it(role: str) -> None:
    # A server has built its model when it says who it is, a client that asks it has not.
    config, model = vllm_config(), model_config(role)
    server = planned(Settings.parse({}), no_one, config, model)
    before = server.identity
    path = model.model
    model.hf_config = SimpleNamespace(architectures=["Tiny"], tie_word_embeddings=False)
    written(config)
    written(model)
    model.model = path  # where the checkpoint is, which is no setting
    assert server.identity.differences(before) == ()
    assert before.differences(server.identity) == ()


def test_the_silent_are_asked_for_weights_last() -> None:
    made, _ = asked_of(None, "9", None)
    assert [source.port for source in made.sources] == [3, 1]


def test_a_failure_in_comparing_answers_costs_a_line_and_no_source() -> None:
    made, lines = asked_of("8", answers='[{}, {"tokenizer.json": "1"}, []]')
    assert events(lines) == ["netloader.driver.error"]  # this stand-in of a config has no tokenizer
    assert (made.warned, len(made.sources)) == ((), 1)


# -- ranks and ports -----------------------------------------------------------------------------


def rank_in(monkeypatch: pytest.MonkeyPatch, world: int, mine: int, **changes: Any) -> int:
    """The rank of a worker in a process group of this size."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: mine)
    return reading.rank(parallel(**changes))


@pytest.mark.parametrize("apart", [True, False], ids=["a world each", "one world"])
@pytest.mark.parametrize(("replicas", "size"), [(1, 1), (1, 4), (2, 1), (2, 2), (3, 4)])
def test_no_two_workers_of_an_instance_have_one_rank(
    monkeypatch: pytest.MonkeyPatch, apart: bool, replicas: int, size: int
) -> None:
    # Dense replicas have a torch world of their own, replicas with experts share one.
    found = []
    for replica, mine in product(range(replicas), range(size)):
        world, offset = (size, 0) if apart else (replicas * size, replica * size)
        changes = {"data_parallel_index": replica, "world_size": size}
        found.append(rank_in(monkeypatch, world, offset + mine, **changes))
    assert found == list(range(replicas * size))


def test_before_there_is_a_process_group_replicas_are_told_apart_too() -> None:
    ranks = [reading.rank(parallel(data_parallel_index=i, world_size=2)) for i in range(3)]
    assert ranks == [0, 2, 4]


@pytest.mark.parametrize(
    ("experts", "more"),
    [
        ({"enable_eplb": True}, {}),
        ({}, {"eplb_config": {"dynamic_eplb": True}}),
        ({}, {"eplb_config": {"expert_map_record_path": "somewhere.json"}}),
    ],
)
def test_who_moves_experts_about_does_not_serve(
    experts: dict[str, Any], more: dict[str, Any]
) -> None:
    # Their weights change in place all the time, past every method of the worker.
    config = vllm_config(**experts)
    config.additional_config = more
    with capture() as lines:
        found = planned(Settings.parse({}), no_one, config)
    assert not found.serves
    refused = line_of(lines, "netloader.server.refused")
    assert "EPLB" in refused["netloader.detail"]
    assert "off" in refused["netloader.remedy"]


def test_an_instance_that_refills_its_layers_does_not_serve() -> None:
    config = vllm_config()
    config.additional_config = {"layer_sharding": ["o_proj"]}
    with capture() as lines:
        found = planned(Settings.parse({}), no_one, config)
    assert not found.serves
    assert "layer_sharding" in line_of(lines, "netloader.server.refused")["netloader.remedy"]


@pytest.mark.parametrize("more", [{}, {"eplb_config": {"expert_map_path": None}}])
def test_experts_that_stay_where_they_are_are_served(more: dict[str, Any]) -> None:
    config = vllm_config()
    config.additional_config = more
    assert planned(Settings.parse({}), no_one, config).serves
