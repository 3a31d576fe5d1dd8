"""The servers of a worker, and what all of them wait for."""

import gc
import socket
from functools import partial

import pytest
import torch

from netloader.io import fill
from netloader.log import capture
from netloader.vllm_plugin.identity.identity import TARGET
from netloader.vllm_plugin.serve.warm_up import WarmUp
from netloader.vllm_plugin.serve.worker import this_worker
from tests.unit.io.helpers import contents, eventually, module_of, random
from tests.unit.vllm_plugin.helpers import (
    endpoint_of,
    events,
    identity,
    newest_server,
    serve,
    settings,
    where,
)
from tests.unit.vllm_plugin.patches.test_worker_methods import PATIENCE_S, worker_of

pytestmark = pytest.mark.usefixtures("worker_process")


def test_two_models_of_a_role_that_wait_for_their_engine_are_both_fenced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Both are loaded before the worker has warmed up, as on a device. Then one changes.
    offer = WarmUp.offer

    def as_on_a_device(self: WarmUp, model: object, _: object, then: object) -> None:
        offer(self, model, torch.device("cuda:0"), then)  # type: ignore[arg-type]

    monkeypatch.setattr(WarmUp, "offer", as_on_a_device)
    models = [module_of(w=random(100, 100, seed=seed)) for seed in (1, 2)]
    worker = worker_of("compile_or_warm_up_model", "reload_weights")
    for model in models:
        serve(model, then=lambda: None)
    worker.compile_or_warm_up_model()
    first, second = map(endpoint_of, this_worker().servers)
    told: list[str] = []

    def act() -> None:
        for endpoint in (first, second):
            into = module_of(w=random(100, 100, seed=9))
            (attempt,) = fill(into, [endpoint], identity(TARGET)).attempts
            told.append(attempt.detail)
        models[0].get_parameter("w").data.fill_(7)

    worker.act = act
    worker.reload_weights()
    assert told == ["reload_weights changes the weights"] * 2
    for model, endpoint in zip(models, (first, second), strict=True):
        twin = module_of(w=random(100, 100, seed=9))
        into = lambda: fill(twin, [endpoint], identity(TARGET)).ok  # noqa: E731, B023
        assert eventually(into, PATIENCE_S)
        assert contents(twin) == contents(model)


def test_a_server_ends_with_the_last_of_its_models_and_a_new_one_is_made() -> None:
    model = module_of(w=random(10, 10))
    serve(model, then=lambda: None)
    before, server = where(), newest_server()
    del model
    gc.collect()
    assert eventually(lambda: this_worker().servers == (), PATIENCE_S)
    again = module_of(w=random(10, 10, seed=2))
    serve(again, then=lambda: None)
    assert newest_server() is not server
    assert where() != before


def test_a_port_that_was_busy_is_opened_after_a_change_and_closed_with_the_model() -> None:
    model, worker = module_of(w=random(10, 10)), worker_of()
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        serve(model, settings(listen_port=port), then=lambda: None)
    worker.act = partial(model.get_parameter("w").data.fill_, 7)  # the parameter alone
    with capture() as lines:
        worker.reload_weights()
        twin = module_of(w=random(10, 10, seed=2))
        assert eventually(lambda: fill(twin, [where()], identity(TARGET)).ok, PATIENCE_S)
        assert where().port == port
        assert contents(twin) == contents(model)
        del model
        gc.collect()
        assert eventually(lambda: "netloader.listener.stopped" in events(lines), PATIENCE_S)
    assert "netloader.server.withdrawn" not in events(lines)


def test_loads_of_a_role_are_counted() -> None:
    worker = this_worker()
    counted = [worker.next_agreement(role) for role in ("target", "draft", "target")]
    assert counted == [0, 0, 1]
