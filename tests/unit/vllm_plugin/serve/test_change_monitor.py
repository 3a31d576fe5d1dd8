"""Weights that somebody writes without a word are withdrawn, and offered anew only if proven."""

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from netloader.io import fill
from netloader.io.published import PublishedModel
from netloader.log import capture
from netloader.vllm_plugin.identity.identity import DRAFT, TARGET
from netloader.vllm_plugin.patches import worker_methods
from netloader.vllm_plugin.serve import change_monitor
from netloader.vllm_plugin.serve.worker import this_worker
from tests.unit.io.helpers import contents, eventually, module_of, random
from tests.unit.vllm_plugin.helpers import (
    Lines,
    Model,
    events,
    identity,
    line_of,
    live,
    newest_server,
    receive,
    refusal,
    reload,
    serve,
    where,
)
from tests.unit.vllm_plugin.patches.test_worker_methods import PATIENCE_S, offered, worker_of

pytestmark = pytest.mark.usefixtures("worker_process", "hasty")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly rest between two audits."""
    monkeypatch.setattr(change_monitor, "AT_LEAST_S", 0.05)
    monkeypatch.setattr(change_monitor, "APART_S", 0.05)


def plain(seed: int = 1) -> nn.Module:
    """A model whose tensors the engine uses as they were loaded."""
    return module_of(w=random(100, 100, seed=seed), b=random(100, seed=seed))


def served(model: nn.Module) -> None:
    """Serve, and wait until every byte was looked at once, and what the kernels hold is noted."""
    if isinstance(model, Model):
        serve(model)
    else:
        serve(model, then=lambda: None)
    assert eventually(lambda: live().proven, PATIENCE_S)
    assert live().served.usage.wait(PATIENCE_S)


def withdrawn(lines: Lines) -> bool:
    return eventually(lambda: "netloader.server.withdrawn" in events(lines), PATIENCE_S)


def rewrite(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.fill_(7)


def write(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)


@pytest.mark.parametrize("change", [rewrite, write])
def test_what_the_engine_uses_directly_is_offered_as_it_is_now(
    change: Callable[[nn.Module], None],
) -> None:
    model = plain()
    served(model)
    with capture() as lines:
        change(model)
        assert withdrawn(lines)
        assert offered(plain(9)) == contents(model)
    assert "reload_weights" in line_of(lines, "netloader.server.withdrawn")["netloader.remedy"]
    with capture() as again:
        change(model)  # the second time as well
        model.get_parameter("w").data.fill_(8)
        assert withdrawn(again)
        assert offered(plain(9)) == contents(model)


def rebind(model: Any) -> None:
    model.w.data = model.w.data * 2


def test_memory_that_the_engine_left_is_offered_no_more() -> None:
    model = plain()
    served(model)
    rebind(model)
    assert refusal()[0] in ("not_serving", "not_ready")
    assert eventually(lambda: refusal()[0] == "not_serving", PATIENCE_S)
    assert "w" in refusal()[1]


def test_what_kernels_hold_is_compared_before_a_client_hears_that_all_is_well() -> None:
    # Nothing on offer has changed, and no client could find anything: as in moe_update.
    model = Model(1)
    served(model)
    model.up.weight.data.mul_(2)
    outcome = receive(Model(9))
    assert not outcome.ok
    assert eventually(lambda: refusal()[0] == "not_serving", PATIENCE_S)
    assert "up.weight" in refusal()[1]


def test_a_change_finds_no_way_back_through_sleep() -> None:
    model, worker = Model(1), worker_of()
    served(model)
    model.up.weight.data.mul_(2)
    assert not receive(Model(9)).ok
    worker.sleep(1)
    worker.wake_up()
    assert eventually(lambda: "up.weight" in refusal()[1], PATIENCE_S)
    assert refusal()[0] == "not_serving"
    worker.act = lambda: reload(model, Model(2))
    worker.reload_weights()
    assert offered(Model(9)) == contents(Model(2))


def test_weights_that_keep_changing_are_offered_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_monitor, "EXAMINATIONS", 3)
    model, over = plain(), threading.Event()
    served(model)

    def train() -> None:
        while not over.is_set():
            model.get_parameter("w").data.add_(1)

    training = threading.Thread(target=train)
    with capture() as lines:
        training.start()
        try:
            assert eventually(lambda: "netloader.server.refused" in events(lines), PATIENCE_S)
        finally:
            over.set()
            training.join()
    assert "keep changing" in line_of(lines, "netloader.server.refused")["netloader.detail"]
    assert refusal()[0] == "not_serving"


def test_before_the_first_look_at_every_byte_nothing_is_taken_for_new_weights() -> None:
    # What post-processing has altered in place is not what a client has to load.
    model = plain()
    serve(model, then=lambda: rewrite(model))
    assert eventually(lambda: refusal()[0] == "not_serving", PATIENCE_S)
    assert "changed" in refusal()[1]


def test_a_model_has_to_be_looked_at_itself_when_it_follows_another_in_its_role() -> None:
    # The port stays open for the target; what was found of the first draft says nothing of this.
    target, first, second = plain(1), plain(2), plain(3)
    serve(target, then=lambda: None)
    serve(first, role=DRAFT, then=lambda: None)
    assert eventually(lambda: live(DRAFT).proven, PATIENCE_S)
    del first
    gc.collect()
    assert eventually(lambda: newest_server().roles == (TARGET,), PATIENCE_S)
    serve(second, role=DRAFT, then=lambda: rewrite(second))
    assert newest_server().roles == (TARGET, DRAFT)
    assert eventually(lambda: refusal(DRAFT)[0] == "not_serving", PATIENCE_S)
    assert "changed" in refusal(DRAFT)[1]


def test_an_announced_change_ends_the_examination_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(change_monitor, "APART_S", PATIENCE_S)
    model, worker = plain(), worker_of()
    served(model)
    with capture() as lines:
        rewrite(model)
        assert withdrawn(lines)
        worker.act = lambda: model.get_parameter("w").data.fill_(9)
        worker.reload_weights()
        assert offered(plain(9)) == contents(model)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_audit_that_cannot_be_carried_out_ends_the_offer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: PublishedModel) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(PublishedModel, "audit", broken)
    model = plain()
    serve(model, then=lambda: None)
    assert eventually(lambda: refusal()[0] == "not_serving", PATIENCE_S)
    assert "digests cannot be computed" in refusal()[1]


def test_each_of_two_models_of_a_role_is_fenced() -> None:
    # An engine that loads a role again leaves the first port open as long as its model lives.
    models, worker = [plain(1), plain(2)], worker_of()
    served(models[0])
    first = where()
    served(models[1])
    told: list[str] = []

    def act() -> None:
        (attempt,) = fill(plain(9), [first], identity(TARGET)).attempts
        told.append(attempt.detail)
        rewrite(models[0])

    worker.act = act
    worker.reload_weights()
    assert told == ["reload_weights changes the weights"]
    twin = plain(9)
    assert eventually(lambda: fill(twin, [first], identity(TARGET)).ok, PATIENCE_S)
    assert contents(twin) == contents(models[0])


# -- methods that frameworks call past the worker ------------------------------------------------


class Loading(nn.Module):
    """A model that reads tensors as vLLM's do, through a part of it."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        self.inner = Inner(seed)

    def load_weights(self, weights: dict[str, torch.Tensor]) -> set[str]:
        """Hand all of them to the part."""
        return {*self.inner.load_weights(weights)}


class Inner(nn.Module):
    """Part of a model."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        self.w = nn.Parameter(random(64, 64, seed=seed), requires_grad=False)
        self.told: Callable[[], None] = lambda: None

    def load_weights(self, weights: dict[str, torch.Tensor]) -> Any:
        """A generator, as some of vLLM's are."""
        for name, tensor in weights.items():
            self.told()
            self.w.data.copy_(tensor)
            self.told()
            yield name


class Runner:
    """A model runner of a worker."""

    def __init__(self, model: Loading) -> None:
        self.model = model

    def reload_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Read tensors into the model."""
        self.model.load_weights(weights)


@pytest.mark.parametrize("way", ["worker", "runner", "model", "part"])
def test_each_way_of_loading_is_fenced_once(way: str) -> None:
    model, worker, told = Loading(1), worker_of(), list[str]()
    runner, new = Runner(model), {"w": random(64, 64, seed=5)}
    worker_methods.install_on_runner(runner, this_worker())
    serve(model, then=lambda: None)
    model.inner.told = lambda: told.append(refusal()[1])
    with capture() as lines:
        if way == "worker":
            worker.act = lambda: runner.reload_weights(new)
            worker.reload_weights()
        elif way == "runner":
            runner.reload_weights(new)
        elif way == "model":
            assert model.load_weights(new) == {"w"}
        else:
            assert list(model.inner.load_weights(new)) == ["w"]
    method = "reload_weights" if way in ("worker", "runner") else "load_weights"
    assert told == [f"{method} changes the weights"] * 2
    assert events(lines).count("netloader.server.offered") == 1
    assert offered(Loading(9))["inner.w"] == contents(model)["inner.w"]


def test_a_model_that_is_not_served_loads_as_if_we_were_not_there() -> None:
    model, other = Loading(1), Loading(2)
    serve(model, then=lambda: None)
    with capture() as lines:
        other.load_weights({"w": random(64, 64, seed=5)})
    assert lines == []
    assert receive(Loading(9)).ok
