"""Asleep nothing is offered; awake it is what it was, or it is refused until a reload."""

import gc
import threading
from collections.abc import Callable

import pytest
import torch

from netloader.io.published import PublishedModel
from netloader.log import capture
from netloader.vllm_plugin.identity.identity import DRAFT, TARGET
from netloader.vllm_plugin.serve import live_model
from tests.unit.io.helpers import contents, eventually, module_of, random
from tests.unit.vllm_plugin.helpers import (
    Model,
    events,
    known,
    line_of,
    newest_server,
    receive,
    refusal,
    reload,
    serve,
)
from tests.unit.vllm_plugin.patches.test_worker_methods import (
    PATIENCE_S,
    ask,
    fail,
    no_longer,
    offered,
    worker_of,
    zero,
)

pytestmark = pytest.mark.usefixtures("worker_process")

ASLEEP = ("not_serving", "the instance is asleep")


@pytest.mark.parametrize("tags", [None, ["weights"], ["kv_cache", "weights"]])
def test_awake_the_same_weights_are_offered_again(tags: list[str] | None) -> None:
    target, draft, worker = Model(1), Model(2), worker_of()
    serve(target)
    serve(draft, role=DRAFT)
    worker.sleep(level=1)
    assert (refusal(TARGET), refusal(DRAFT)) == (ASLEEP, ASLEEP)
    worker.wake_up(tags)
    assert worker.calls == [("sleep", 1), ("wake_up", tags)]
    assert offered(Model(9), TARGET) == contents(Model(1))
    assert offered(Model(9), DRAFT) == contents(Model(2))


def test_a_wake_of_the_cache_alone_wakes_no_weights() -> None:
    model, worker = Model(1), worker_of()
    serve(model)
    worker.sleep()
    worker.wake_up(["kv_cache"])
    assert not eventually(lambda: receive(Model(9)).ok, 1.0)
    assert refusal() == ASLEEP
    worker.wake_up(tags=["weights"])
    assert offered(Model(9)) == contents(Model(1))


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this CPU count as a device."""
    monkeypatch.setattr(live_model, "CPU", torch.device("meta"))


@pytest.mark.usefixtures("on_a_device")
def test_nobody_reads_a_device_while_its_cache_wakes() -> None:
    # vllm-ascend captures its graphs anew then, and the weights have been awake for a while.
    model, worker, answers = Model(1), worker_of(), list[tuple[str, str]]()
    serve(model)
    worker.sleep(1)
    worker.wake_up(["weights"])
    assert offered(Model(9)) == contents(Model(1))
    worker.act = ask(answers)
    worker.wake_up(["kv_cache"])
    assert answers == [("not_serving", "the instance wakes up")]
    assert offered(Model(9)) == contents(Model(1))


@pytest.mark.usefixtures("on_a_device")
def test_nobody_looks_at_a_device_while_its_cache_wakes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Weights that a trainer has just sent are still being digested when the cache is woken.
    model, worker, reading = Model(1), worker_of(), list[bool]()
    serve(model)
    worker.sleep(2)
    worker.wake_up(["weights"])
    with monkeypatch.context() as patched:
        patched.setattr(PublishedModel, "seal_quietly", lambda self: None)
        worker.act = lambda: reload(model, Model(2))
        worker.reload_weights()
    worker.act = lambda: reading.extend(not p.quiet(0) for p in known())
    worker.wake_up(["kv_cache"])
    assert reading
    assert not any(reading)
    worker.act = lambda: None
    assert offered(Model(9)) == contents(Model(2))


@pytest.mark.usefixtures("on_a_device")
def test_a_cache_that_does_not_wake_takes_no_weights_away() -> None:
    model, worker = Model(1), worker_of()
    serve(model)
    worker.act = fail
    with pytest.raises(ZeroDivisionError):
        worker.wake_up(["kv_cache"])
    assert offered(Model(9)) == contents(Model(1))


def test_weights_that_did_not_survive_are_refused_until_a_reload() -> None:
    model, worker = Model(1), worker_of()
    serve(model)
    worker.act = lambda: zero(model)
    worker.sleep(2)
    worker.act = lambda: None
    with capture() as lines:
        worker.wake_up()
        assert no_longer(lines)
    refused = line_of(lines, "netloader.server.refused")
    assert "changed" in refused["netloader.detail"]
    assert "reload" in refused["netloader.remedy"]
    assert refusal()[0] == "not_serving"
    worker.act = lambda: reload(model, Model(1))
    worker.reload_weights()
    assert offered(Model(9)) == contents(Model(1))


def test_discarded_weights_are_offered_after_a_reload() -> None:
    model, worker = Model(1), worker_of()
    serve(model)
    worker.act = lambda: zero(model)
    worker.discard(("weights",))
    assert refusal() == ("not_serving", "the weights were discarded")
    worker.act = lambda: reload(model, Model(2))
    worker.reload_weights()
    assert offered(Model(9)) == contents(Model(2))


def test_a_discarded_cache_is_no_business_of_ours() -> None:
    model, worker = Model(1), worker_of()
    serve(model)
    worker.discard(("kv_cache",))
    assert receive(Model(9)).ok


def test_a_wake_without_a_sleep_disturbs_nobody() -> None:
    model, worker = Model(1), worker_of()
    with capture() as lines:
        serve(model)
        worker.wake_up()
        assert receive(Model(9)).ok
    assert events(lines).count("netloader.server.offered") == 1


def test_asleep_before_the_digests_were_known_nothing_is_offered_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # After a reload they are computed in the background. What a wake finds then may be anything.
    model, worker, go = Model(1), worker_of(), threading.Event()
    serve(model)
    with monkeypatch.context() as patched:
        patched.setattr(PublishedModel, "seal_quietly", lambda self: go)
        worker.act = lambda: reload(model, Model(2))
        worker.reload_weights()
    worker.act = lambda: zero(model)
    worker.sleep(2)
    worker.act = lambda: None
    with capture() as lines:
        worker.wake_up()
        assert no_longer(lines)
    assert refusal()[0] == "not_serving"


@pytest.fixture
def waking_slowly(monkeypatch: pytest.MonkeyPatch) -> Callable[[], threading.Event]:
    """Hold the look at every byte that comes before weights are offered again."""
    go, audit = threading.Event(), PublishedModel.audit

    def slow(published: PublishedModel) -> None:
        go.wait(PATIENCE_S)
        audit(published)

    def patch() -> threading.Event:
        monkeypatch.setattr(PublishedModel, "audit", slow)
        return go

    return patch


def test_asleep_again_before_it_was_quite_awake_nothing_is_offered(
    waking_slowly: Callable[[], threading.Event],
) -> None:
    model, worker = Model(1), worker_of()
    serve(model)
    worker.sleep()
    go = waking_slowly()
    with capture() as lines:
        worker.wake_up()
        worker.sleep()
        go.set()
        assert not eventually(lambda: "netloader.server.offered" in events(lines), 1.0)
    assert refusal() == ASLEEP
    worker.wake_up()
    assert offered(Model(9)) == contents(Model(1))


def test_a_model_that_is_gone_before_it_was_quite_awake_is_not_offered_again(
    waking_slowly: Callable[[], threading.Event],
) -> None:
    model, worker = Model(1), worker_of()
    serve(model)
    worker.sleep()
    go = waking_slowly()
    worker.wake_up()
    with capture() as lines:
        del model
        gc.collect()
        go.set()
        assert eventually(lambda: "netloader.listener.stopped" in events(lines), PATIENCE_S)
        assert not eventually(lambda: "netloader.listener.started" in events(lines), 1.0)


def test_nobody_looks_at_the_bytes_any_more_when_they_are_taken_away() -> None:
    plain, worker = module_of(w=random(4096, 4096)), worker_of()
    serve(plain, then=lambda: None)
    reading: list[bool] = []

    def act() -> None:
        reading.extend(not p.quiet(0) for p in before)

    worker.sleep()
    worker.wake_up()
    with newest_server()._rank.lock:  # the look that began with the wake may be about to end
        before = known()
    worker.act = act
    worker.sleep()
    assert len(reading) >= 1
    assert not any(reading)
    worker.act = lambda: None
    worker.wake_up()
    assert offered(module_of(w=random(4096, 4096, seed=2))) == contents(plain)


def test_a_look_that_ends_late_does_not_take_back_what_is_offered_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The first audit has ended, withdrawn by the sleep, and gets to say so only after the wake.
    model, worker, go = Model(1), worker_of(), threading.Event()
    audit, first = PublishedModel.audit, list[PublishedModel]()

    def late(published: PublishedModel) -> None:
        if not first:
            first.append(published)
            go.wait(PATIENCE_S)
        audit(published)

    monkeypatch.setattr(PublishedModel, "audit", late)
    serve(model)
    assert eventually(lambda: first)
    worker.sleep()
    worker.wake_up()
    assert eventually(lambda: receive(Model(9)).ok, PATIENCE_S)
    with capture() as lines:
        go.set()
        assert not eventually(lambda: "netloader.server.withdrawn" in events(lines), 1.0)
    assert newest_server().roles == (TARGET,)
    assert receive(Model(9)).ok
