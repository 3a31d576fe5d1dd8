"""While weights change nothing is offered; afterwards what they are then, or nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from netloader.log import capture
from netloader.vllm_plugin.identity.identity import DRAFT, TARGET
from netloader.vllm_plugin.patches import worker_methods
from netloader.vllm_plugin.serve import live_model, served_model
from netloader.vllm_plugin.serve.live_model import LiveModel
from netloader.vllm_plugin.serve.usage_record import UsageRecord
from netloader.vllm_plugin.serve.worker import this_worker
from tests.unit.io.helpers import bytes_of, contents, eventually, module_of, random
from tests.unit.vllm_plugin.helpers import (
    Lines,
    Model,
    events,
    line_of,
    live,
    receive,
    refusal,
    reload,
    serve,
)

pytestmark = pytest.mark.usefixtures("worker_process")

PATIENCE_S = 30.0
METHODS = (
    "reload_weights",
    "reset_weights",
    "start_weight_update",
    "start_draft_weight_update",
    "update_weights",
    "finish_weight_update",
    "sleep",
    "discard",
    "wake_up",
)


class Recorder:
    """What a worker's methods have in common here: they note the call, then act."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        self.act = act
        self.calls: list[tuple[Any, ...]] = []

    def note(self, *call: Any) -> str:
        self.calls.append(call)
        self.act()
        return f"{call[0]} is done"


def method_of(name: str) -> Callable[..., str]:
    def method(self: Recorder, *args: Any, **kwargs: Any) -> str:
        return self.note(name, *args, *kwargs.values())

    return method


def worker_of(*names: str) -> Any:
    """A worker of a new class with these methods, fenced; this thread loads for it."""
    kind = type("Worker", (Recorder,), {name: method_of(name) for name in names or METHODS})
    worker_methods.install(kind)
    worker = kind()
    assert worker_methods.worker_of(worker) is this_worker()
    return worker


def offered(into: nn.Module, role: str = TARGET) -> dict[str, bytes]:
    """What a client gets, now or soon."""
    assert eventually(lambda: receive(into, role).ok, PATIENCE_S)
    return contents(into)


def ask(answers: list[tuple[str, str]], role: str = TARGET) -> Callable[[], None]:
    """To be done in the middle of a change: be a client, and note what it is told."""
    return lambda: answers.append(refusal(role))


def fail() -> None:
    raise ZeroDivisionError("the method failed")


def zero(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.zero_()


def no_longer(lines: Lines) -> bool:
    return eventually(lambda: "netloader.server.refused" in events(lines), PATIENCE_S)


# -- changes in one call -------------------------------------------------------------------------


def test_a_reload_turns_clients_away_and_then_offers_the_new_weights() -> None:
    model, worker, answers = Model(1), worker_of(), list[tuple[str, str]]()
    serve(model)

    def act() -> None:
        ask(answers)()
        reload(model, Model(2))
        ask(answers)()

    worker.act = act
    assert worker.reload_weights("some", path="where") == "reload_weights is done"
    assert worker.calls == [("reload_weights", "some", "where")]
    assert answers == [("not_serving", "reload_weights changes the weights")] * 2
    assert offered(Model(9)) == contents(Model(2))


def test_a_second_reload_offers_the_newest_weights() -> None:
    model, worker = Model(1), worker_of()
    serve(model)
    for seed in (2, 3):
        worker.act = lambda seed=seed: reload(model, Model(seed))
        worker.reload_weights()
    assert offered(Model(9)) == contents(Model(3))


def test_zeroed_weights_are_offered_where_they_are_the_models_own() -> None:
    plain, worker = module_of(w=random(100, 100)), worker_of()
    serve(plain, then=lambda: None)
    worker.act = lambda: zero(plain)
    worker.reset_weights()
    assert set(offered(module_of(w=random(100, 100, seed=1)))["w"]) == {0}


def test_weights_written_in_the_form_of_the_kernels_are_offered_no_more() -> None:
    model, worker = Model(1), worker_of()
    serve(model)
    with capture() as lines:
        worker.act = lambda: zero(model)
        worker.reset_weights()
    refused = line_of(lines, "netloader.server.refused")
    assert "up.weight" in refused["netloader.detail"]
    assert "down.weight" in refused["netloader.detail"]
    assert "reload" in refused["netloader.remedy"]
    assert refusal()[0] == "not_serving"


def test_a_wake_does_not_bring_back_what_the_model_no_longer_has() -> None:
    # The originals we keep are whole and have their old digests; the kernels hold others.
    model, worker = Model(1), worker_of()
    serve(model)
    worker.act = lambda: model.up.weight.data.mul_(2)
    worker.reset_weights()
    worker.act = lambda: None
    worker.sleep(1)
    worker.wake_up()
    assert not eventually(lambda: receive(Model(9)).ok, 1.0)
    worker.act = lambda: reload(model, Model(2))
    worker.reload_weights()
    assert offered(Model(9)) == contents(Model(2))


@pytest.mark.parametrize("name", ["reload_weights", "reset_weights"])
def test_a_change_that_fails_at_once_changes_nothing(name: str) -> None:
    model, worker = Model(1), worker_of()
    serve(model)
    worker.act = fail
    with pytest.raises(ZeroDivisionError, match="the method failed"):
        getattr(worker, name)()
    assert offered(Model(9)) == contents(Model(1))


@pytest.mark.parametrize("part", ["norm", "up", "kernels"])
def test_a_change_that_fails_half_way_is_offered_only_after_the_next_one(part: str) -> None:
    model, worker = Model(1), worker_of()
    serve(model)

    def half() -> None:
        if part == "kernels":
            model.up.weight.data.mul_(2)
        elif part == "up":
            reload(model.up, Model(2).up)
        else:
            model.norm.data.fill_(7)
        fail()

    worker.act = half
    with capture() as lines:
        with pytest.raises(ZeroDivisionError):
            worker.reload_weights()
        assert no_longer(lines)
    assert refusal()[0] == "not_serving"
    worker.act = lambda: reload(model, Model(3))
    worker.reload_weights()
    assert offered(Model(9)) == contents(Model(3))


def test_a_running_transfer_is_over_before_the_weights_change() -> None:
    plain, worker = module_of(w=random(32 << 20, dtype=torch.uint8)), worker_of()
    twin = module_of(w=random(32 << 20, seed=1, dtype=torch.uint8))
    serve(plain, then=lambda: None)
    reading: list[bool] = []

    def act() -> None:
        reading.append(not live().published.quiet(0))
        zero(plain)

    def slow(done: int, total: int) -> None:
        if not worker.calls:  # in the middle of receiving
            worker.act = act
            worker.reload_weights()

    outcome = receive(twin, lanes=1, report=slow)
    assert reading == [False]
    (attempt,) = outcome.attempts
    assert (attempt.reason.value, attempt.detail) == (
        "not_serving",
        "reload_weights changes the weights",
    )
    assert set(offered(twin)["w"]) == {0}


def test_the_draft_is_served_while_the_target_is_reloaded() -> None:
    target, draft, worker, got = Model(1), Model(2), worker_of(), list[bool]()
    serve(target)
    serve(draft, role=DRAFT)
    worker.act = lambda: got.append(receive(Model(9), DRAFT).ok)
    worker.reload_weights()
    assert got == [True]


# -- updates by a trainer ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "role", "other"),
    [
        ("start_weight_update", TARGET, DRAFT),
        ("start_draft_weight_update", DRAFT, TARGET),
    ],
)
def test_an_update_is_closed_from_its_begin_to_its_end(begin: str, role: str, other: str) -> None:
    models, worker = {TARGET: Model(1), DRAFT: Model(2)}, worker_of()
    for name, model in models.items():
        serve(model, role=name)
    getattr(worker, begin)()
    why = ("not_serving", f"{begin} was called, and no end yet")
    assert refusal(role) == why
    worker.update_weights({})
    assert refusal(role) == why
    assert receive(Model(9), other).ok
    worker.act = lambda: reload(models[role], Model(3))
    worker.finish_weight_update()
    assert offered(Model(9), role) == contents(Model(3))


@pytest.mark.parametrize("failing", ["start_weight_update", "update_weights"])
@pytest.mark.parametrize("dirty", [False, True])
def test_an_update_that_fails_is_over(failing: str, dirty: bool) -> None:
    model, worker = Model(1), worker_of()
    serve(model)

    def act() -> None:
        if dirty:
            model.norm.data.fill_(7)
        fail()

    with capture() as lines:
        for name in ("start_weight_update", "update_weights"):
            if name == failing:
                worker.act = act
                with pytest.raises(ZeroDivisionError):
                    getattr(worker, name)()
                break
            getattr(worker, name)()
        if dirty:
            assert no_longer(lines)
            assert refusal()[0] == "not_serving"
        else:
            assert offered(Model(9)) == contents(Model(1))
    worker.act = lambda: None
    worker.start_weight_update()  # and another one may come
    worker.act = lambda: reload(model, Model(3))
    worker.finish_weight_update()
    assert offered(Model(9)) == contents(Model(3))


def test_an_end_that_fails_ends_nothing_and_may_be_tried_again() -> None:
    model, worker = Model(1), worker_of()
    serve(model)
    worker.start_weight_update()
    worker.act = fail
    with pytest.raises(ZeroDivisionError):
        worker.finish_weight_update()
    assert refusal()[0] == "not_serving"
    worker.act = lambda: reload(model, Model(3))
    worker.finish_weight_update()
    assert offered(Model(9)) == contents(Model(3))


def test_a_second_start_that_vllm_refuses_ends_nothing() -> None:
    model, worker = Model(1), worker_of()
    serve(model)
    worker.start_weight_update()
    worker.act = fail
    for name in ("start_weight_update", "start_draft_weight_update"):
        with pytest.raises(ZeroDivisionError):
            getattr(worker, name)()
        assert refusal() == ("not_serving", "start_weight_update was called, and no end yet")
    worker.act = lambda: reload(model, Model(2))
    worker.finish_weight_update()
    assert offered(Model(9)) == contents(Model(2))


def test_an_end_without_a_begin_leaves_the_offer_alone() -> None:
    model, worker = Model(1), worker_of()
    serve(model)
    worker.update_weights({})
    worker.finish_weight_update()
    assert receive(Model(9)).ok


# -- any change ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_where_nothing_is_served_methods_run_as_if_we_were_not_there(name: str) -> None:
    worker = worker_of()
    tagged = name in ("discard", "wake_up")
    arguments: tuple[Any, ...] = (("weights",),) if tagged else (1,)
    with capture() as lines:
        assert getattr(worker, name)(*arguments) == f"{name} is done"
        assert worker.calls == [(name, *arguments)]
        worker.act = fail
        with pytest.raises(ZeroDivisionError):
            getattr(worker, name)(*arguments)
    assert lines == []


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("place", "broken"),
    [
        (LiveModel, "fence"),
        (LiveModel, "resume"),
        (LiveModel, "renew"),
        (UsageRecord, "look"),
        (live_model, "publish"),
    ],
)
def test_a_bug_of_ours_never_keeps_a_method_from_running(
    name: str, place: Any, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    model, worker = Model(1), worker_of()
    serve(model)
    monkeypatch.setattr(place, broken, bug)
    assert getattr(worker, name)(("weights",)) == f"{name} is done"
    worker.act = fail
    with pytest.raises(ZeroDivisionError):
        getattr(worker, name)(("weights",))


def test_an_original_that_cannot_be_copied_does_not_stop_a_reload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    model, worker = Model(1), worker_of()
    serve(model)
    monkeypatch.setattr(served_model, "_copy_of", full)
    with capture() as lines:
        worker.act = lambda: reload(model, Model(2))
        worker.reload_weights()
    assert torch.equal(model.up.weight, Model(2).up.weight.flip(0))
    assert "up.weight" in line_of(lines, "netloader.server.refused")["netloader.detail"]
    assert bytes_of(model.norm) == bytes_of(Model(2).norm)
