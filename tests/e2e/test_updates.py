"""Weights that are changed past vLLM's methods, as frameworks that train do it.

Whatever was done to a server, a new client answers as its server does now, or is refused with the
reason. Which of the two depends on the CPU: what its kernels pack is not offered again.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from netloader.vllm_plugin.inspect.parity.engine import EngineError
from tests.e2e.engines import Engine, ForkServer
from tests.e2e.source_logs import Model, latest_log, made, only, said, serving
from tests.support.zoo import dense, experts
from tests.unit.io.helpers import eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PATIENCE_S = 60.0
CLIENTS = 6


# -- what frameworks have a worker do ------------------------------------------------------------


def floats(worker: Any) -> list[tuple[str, Any]]:
    named = worker.model_runner.get_model().named_parameters()
    return [(name, p) for name, p in named if p.is_floating_point() and p.numel() > 1]


def assign(worker: Any) -> None:
    for _, parameter in floats(worker):
        parameter.data.copy_(parameter.data * 1.5)


def copy(worker: Any) -> None:
    with torch.no_grad():
        for _, parameter in floats(worker):
            parameter.copy_(parameter * 1.5)


def scale_experts(worker: Any) -> None:
    for name, parameter in floats(worker):
        if "w13_weight" in name or "w2_weight" in name:
            parameter.data.mul_(0.5)


def one_layer(worker: Any) -> None:
    for name, parameter in floats(worker):
        if "layers.0." in name:
            parameter.data.mul_(1.5)


def merge(worker: Any) -> None:
    """Merge an adapter into the projection of the queries."""
    for name, parameter in floats(worker):
        if "q_proj" in name or "qkv_proj" in name:
            down = torch.full((parameter.shape[1], 2), 0.1, dtype=parameter.dtype)
            up = torch.full((2, parameter.shape[0]), 0.1, dtype=parameter.dtype)
            parameter.data.add_((down @ up).T)


def norms(worker: Any) -> None:
    for name, parameter in floats(worker):
        if "norm" in name:
            parameter.data = parameter.data * 3 + 1


def reload_through_runner(worker: Any, file: str) -> None:
    worker.model_runner.reload_weights(weights_iterator=iter(load_file(file).items()))


def load_into_model(worker: Any, file: str) -> None:
    worker.model_runner.get_model().load_weights(load_file(file).items())


def load_one_layer(worker: Any, file: str) -> None:
    tensors = {n: t for n, t in load_file(file).items() if "layers.1." in n}
    worker.model_runner.reload_weights(weights_iterator=iter(tensors.items()))


BY_HAND: list[tuple[str, Callable[[Any], None]]] = [
    ("llama", copy),
    ("llama", assign),
    ("llama", one_layer),
    ("llama", norms),
    ("mixtral", scale_experts),
    ("mixtral", merge),
    ("latent", assign),
]
LOADING: list[tuple[str, Callable[[Any, str], None]]] = [
    ("llama", load_into_model),
    ("mixtral", reload_through_runner),
    ("latent", load_into_model),
]


# -- a server, and clients of it -----------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Model, Model]]:
    """Models of each kind with two sets of weights."""
    recipes = {
        "llama": dense.llama(),
        "mixtral": experts.mixtral(),
        "latent": experts.deepseek_v2(),
    }
    folder = tmp_path_factory.mktemp("updates")
    return {
        kind: (made(folder / kind / "one", recipe, 1), made(folder / kind / "two", recipe, 2))
        for kind, recipe in recipes.items()
    }


def file_of(model: Model) -> str:
    return str(model.full / "model.safetensors")


def outcome(fork_server: ForkServer, server: Engine, model: Model, at: list[str]) -> str:
    """What becomes of new clients: `new` weights, or the reason why there are none.

    The first may come before the server has looked, and finds other bytes than were promised.
    Fails when one is up and does not answer as its server.
    """
    for _ in range(CLIENTS):
        try:
            with fork_server.engine(
                model.bare, {**only(at), "QUEUE_TIMEOUT_S": PATIENCE_S}
            ) as client:
                assert client.generate() == server.generate(), client.log()
                return "new"
        except EngineError:
            log = latest_log(fork_server)
        told = [line for line in log.splitlines() if "netloader.fallback.engaged" in line]
        if "not_serving (" in told[-1]:
            return told[-1].partition("not_serving (")[2]
        assert "digest_mismatch (" in told[-1], log
    pytest.fail(f"{CLIENTS} clients were promised other bytes than there are")


def proven(worker: Any) -> bool:
    """Whether the first look at everything is over, and what the kernels hold is noted."""
    from netloader.vllm_plugin.patches.worker_methods import worker_of
    from netloader.vllm_plugin.serve.worker import current_worker

    servers = worker_of(worker).servers
    assert servers, "vLLM's worker does not hold ours"
    assert current_worker() is None, "the thread holds it"
    models = [live for server in servers for live in server.models]
    return all(live.proven and live.served.usage.complete for live in models)


def look_now(worker: Any) -> None:
    """Do what the server does from time to time."""
    from netloader.vllm_plugin.patches.worker_methods import worker_of

    for server in worker_of(worker).servers:
        for live in server.models:
            live.published.audit()


def ready(server: Engine) -> bool:
    return all(server.rpc(proven))


@pytest.mark.parametrize(("kind", "write"), BY_HAND)
def test_weights_written_by_hand(
    fork_server: ForkServer, models: Any, tmp_path: Path, kind: str, write: Callable[[Any], None]
) -> None:
    one, _ = models[kind]
    with serving(fork_server, one.full, tmp_path) as (server, at):
        before = server.generate()
        assert eventually(lambda: ready(server), PATIENCE_S)
        server.rpc(write)
        changed = server.generate() != before
        server.rpc(look_now)
        became = outcome(fork_server, server, one, at)
        assert became == "new" or said(server, "netloader.server.withdrawn")
        if became != "new" and changed:
            server.rpc("sleep", 1)
            server.rpc("wake_up")
            assert outcome(fork_server, server, one, at) != "new"


@pytest.mark.parametrize(("kind", "load"), LOADING)
def test_weights_loaded_past_the_workers_methods(
    fork_server: ForkServer,
    models: Any,
    tmp_path: Path,
    kind: str,
    load: Callable[[Any, str], None],
) -> None:
    one, two = models[kind]
    with serving(fork_server, one.full, tmp_path) as (server, at):
        with contextlib.suppress(EngineError):  # a kernel has taken the place that it wants to fill
            server.rpc(load, file_of(two))
        became = outcome(fork_server, server, one, at)
        assert became == "new" or said(server, "netloader.server.refused")


def test_vllms_own_reload_offers_again(
    fork_server: ForkServer, models: Any, tmp_path: Path
) -> None:
    """Through the runner, of all layers and of one, and after weights were written by hand."""
    one, two = models["llama"]
    with serving(fork_server, one.full, tmp_path) as (server, at):
        first = server.generate()
        server.rpc(reload_through_runner, file_of(two))
        second = server.generate()
        assert outcome(fork_server, server, one, at) == "new"
        server.rpc(load_one_layer, file_of(one))
        assert len({str(tokens) for tokens in (first, second, server.generate())}) == 3
        assert outcome(fork_server, server, one, at) == "new"
        server.rpc(assign)
        server.rpc(look_now)
        server.rpc("reload_weights")
        assert server.generate() == first
        assert outcome(fork_server, server, one, at) == "new"
