"""Which methods of which class are fenced, and what is left alone."""

import pytest
import torch
from torch import nn

from netloader.log import capture
from netloader.vllm_plugin.patches import worker_methods
from netloader.vllm_plugin.patches.worker_methods import WARMS_UP
from netloader.vllm_plugin.serve.worker import this_worker
from tests.unit.io.helpers import eventually
from tests.unit.vllm_plugin.helpers import Model, receive, refusal, serve
from tests.unit.vllm_plugin.patches.test_worker_methods import (
    METHODS,
    PATIENCE_S,
    ask,
    method_of,
    worker_of,
)

pytestmark = pytest.mark.usefixtures("worker_process")


def test_a_worker_without_some_methods_is_fenced_at_the_others() -> None:
    model, worker = Model(1), worker_of("reload_weights")
    serve(model)
    answers: list[tuple[str, str]] = []
    worker.act = ask(answers)
    worker.reload_weights()
    assert answers == [("not_serving", "reload_weights changes the weights")]
    assert not hasattr(worker, "discard")


def test_installing_twice_wraps_once() -> None:
    worker = worker_of()
    before = {name: getattr(type(worker), name) for name in METHODS}
    worker_methods.install(type(worker))
    assert {name: getattr(type(worker), name) for name in METHODS} == before
    assert worker.sleep() == "sleep is done"
    assert worker.calls == [("sleep",)]


def test_a_subclass_is_fenced_through_the_class_it_inherits_from() -> None:
    kind = type(worker_of())
    child = type("Child", (kind,), {"sleep": method_of("sleep")})
    worker_methods.install(child)
    model, worker, answers = Model(1), child(), list[tuple[str, str]]()
    serve(model)
    worker.act = ask(answers)
    worker.sleep()
    worker.wake_up()
    worker.act = lambda: None
    assert eventually(lambda: receive(Model(9)).ok, PATIENCE_S)
    assert answers[0] == ("not_serving", "the instance is asleep")


@pytest.mark.parametrize(
    "name", ["auto", "no.such.Worker", "netloader.vllm_plugin.patches.worker_methods.Nothing"]
)
def test_a_worker_class_that_is_not_there_costs_nothing(name: str) -> None:
    worker_methods.expect_warm_up([name])


def test_offers_on_a_device_are_made_when_the_worker_has_warmed_up() -> None:
    worker, offered, model = worker_of(WARMS_UP), list[nn.Module](), nn.Module()
    this_worker().warm_up.expect()
    this_worker().warm_up.offer(model, torch.device("cuda:0"), offered.append)
    assert offered == []

    assert worker.compile_or_warm_up_model() == f"{WARMS_UP} is done"

    assert offered == [model]


@pytest.mark.parametrize("name", ["destroy_worker_extension", "shutdown"])
def test_a_worker_that_ends_offers_nothing_from_then_on(name: str) -> None:
    """It may free what clients read, or destroy what they read it with. That is no warning."""
    model, worker, answers = Model(1), worker_of(name), list[tuple[str, str]]()
    serve(model)
    worker.act = ask(answers)
    with capture() as lines:
        assert getattr(worker, name)() == f"{name} is done"
    assert not [line for line in lines if line["event"] == "netloader.server.withdrawn"]
    assert [*answers, refusal()] == [("not_serving", "the instance shuts down")] * 2
