"""Weights that change while they are served, and weights that are received again in place."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from netloader.vllm_plugin.inspect.parity.engine import EngineError
from netloader.vllm_plugin.inspect.parity.run import PROMPTS
from tests.e2e.engines import (
    NEEDS_ADAPTED_RELOAD,
    NEEDS_NO_ADAPTED_RELOAD,
    NEEDS_RESET,
    Engine,
    ForkServer,
)
from tests.e2e.source_logs import (
    INSIDE,
    Model,
    failing,
    made,
    only,
    received,
    said,
    serving,
    sources,
    written,
)
from tests.support.zoo import dense, experts
from tests.support.zoo.checkpoint import HIDDEN, LAYERS
from tests.support.zoo.quantized import quantized_llama
from tests.unit.io.helpers import eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

OFFERED, WITHDRAWN = "netloader.server.offered", "netloader.server.withdrawn"
PARTS = ["q_proj", "o_proj"]
"""What an adapter of these tests changes."""
ADAPTED: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 8, "worker_extension_cls": INSIDE}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    """The same model with two sets of weights."""
    folder = tmp_path_factory.mktemp("llama")
    return made(folder / "one", dense.llama(), 1), made(folder / "two", dense.llama(), 2)


@pytest.fixture
def serves(
    fork_server: ForkServer, models: tuple[Model, Model], tmp_path: Path
) -> Iterator[tuple[Engine, list[str]]]:
    """A server of the first."""
    with serving(fork_server, models[0].full, tmp_path) as pair:
        yield pair


@pytest.fixture(scope="module")
def tokens(fork_server: ForkServer, models: tuple[Model, Model]) -> tuple[Any, Any]:
    """What each of the two answers."""
    answers = []
    for model in models:
        with fork_server.engine(model.full, {}) as engine:
            answers.append(engine.generate())
    assert answers[0] != answers[1]
    return answers[0], answers[1]


def offers(engine: Engine) -> int:
    return len(said(engine, OFFERED))


def listens(endpoint: str) -> bool:
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port))).close()
    except OSError:
        return False
    return True


def next_client(fork_server: ForkServer, model: Model, at: list[str]) -> Any:
    """What a new client without files answers."""
    with fork_server.engine(model.bare, only(at)) as client:
        return client.generate()


@NEEDS_RESET
def test_a_server_offers_what_its_weights_are_now(
    fork_server: ForkServer, models: Any, serves: tuple[Engine, list[str]], tokens: Any
) -> None:
    (one, two), (server, at) = models, serves
    server.rpc("reload_weights")
    assert server.generate() == next_client(fork_server, one, at) == tokens[0]

    server.rpc("reload_weights", weights_path=str(two.full))
    assert server.generate() == next_client(fork_server, one, at) == tokens[1]
    with fork_server.engine(one.full, sources(at)) as owner:  # its own files are the first model's
        assert "differing: checkpoint" in owner.log()
        assert owner.generate() == tokens[0]
    with fork_server.engine(two.full, {**only(at)}) as owner:
        assert received(owner) == 1

    server.rpc("reset_weights")  # zeroes parameters; what kernels have packed stays as it was
    nothing = server.generate()
    assert nothing != tokens[1]
    packed = bool(said(server, "netloader.server.refused"))
    if packed:
        assert "netloader.reason=not_serving" in failing(fork_server, one.bare, only(at))
    else:
        assert next_client(fork_server, one, at) == nothing
    server.rpc("reload_weights", weights_path=str(one.full))
    assert server.generate() == next_client(fork_server, one, at) == tokens[0]
    assert len(said(server, WITHDRAWN)) == 4 - packed
    assert offers(server) == 5 - packed


def test_a_client_reloads_from_its_source(
    fork_server: ForkServer, models: Any, serves: tuple[Engine, list[str]], tokens: Any
) -> None:
    """It has no files, and its server has other weights by now."""
    (one, two), (server, at) = models, serves
    with fork_server.engine(one.bare, sources(at)) as client:
        assert client.generate() == tokens[0]
        server.rpc("reload_weights", weights_path=str(two.full))
        client.rpc("reload_weights")
        assert received(client) == 2
        assert client.generate() == tokens[1]
        client.rpc("reload_weights", weights_path=str(one.full))  # what the caller says, counts
        assert received(client) == 2
        assert client.generate() == tokens[0]
        assert offers(client) == 3


@NEEDS_RESET
def test_a_client_reloads_from_disk_when_its_source_is_gone(
    fork_server: ForkServer, models: Any, serves: tuple[Engine, list[str]], tokens: Any
) -> None:
    (one, _), (server, at) = models, serves
    with (
        fork_server.engine(one.full, sources(at)) as client,
        fork_server.engine(one.bare, only(at)) as bare,
    ):
        server.close()
        assert eventually(lambda: not listens(at[0]))
        client.rpc("reset_weights")
        client.rpc("reload_weights")
        assert received(client) == 1
        assert client.generate() == tokens[0]
        with pytest.raises(EngineError, match="FALLBACK is never"):
            bare.rpc("reload_weights")
        assert bare.generate() == tokens[0]


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        pytest.param(2, {}, id="TP 2"),
        pytest.param(1, {"dtype": "float32"}, id="float32"),
        pytest.param(1, ADAPTED, id="LoRA enabled", marks=NEEDS_ADAPTED_RELOAD),
    ],
)
def test_layers_of_every_kind_take_their_weights_again(
    fork_server: ForkServer, models: Any, tmp_path: Path, ranks: int, options: Any
) -> None:
    one, two = models
    with (
        serving(fork_server, one.full, tmp_path, ranks, **options) as (server, at),
        fork_server.engine(one.bare, only(at), ranks, **options) as client,
    ):
        first = server.generate()
        assert client.generate() == first
        server.rpc("reload_weights", weights_path=str(two.full))
        assert client.generate() == first != server.generate()
        client.rpc("reload_weights")
        assert received(client) == 2 * ranks
        assert client.generate() == server.generate()


@pytest.mark.parametrize("kind", ["mixtral", "w8a8"])
def test_what_vllm_cannot_reload_stays_as_it_is(
    fork_server: ForkServer, tmp_path: Path, kind: str
) -> None:
    """On a CPU vLLM would answer nonsense afterwards, and say nothing."""
    if kind == "mixtral":
        model, extra = made(tmp_path / kind, experts.mixtral()), {}
    else:
        model, extra = written(tmp_path / kind, *quantized_llama(kind)), {"INT8_CACHE": "dram"}
    with (
        serving(fork_server, model.full, tmp_path, extra=extra) as (server, at),
        fork_server.engine(model.bare, only(at)) as client,
    ):
        before = server.generate()
        for engine in (server, client):
            with pytest.raises(EngineError, match=r"NotImplementedError: vLLM cannot reload"):
                engine.rpc("reload_weights")
            assert engine.generate() == before
        assert eventually(lambda: offers(server) == 2)
        assert next_client(fork_server, model, at) == before


def adapter(folder: Path) -> Path:
    """A LoRA adapter as PEFT writes them, strong enough to change every answer."""
    folder.mkdir()
    rank, chance = 4, torch.Generator().manual_seed(5)
    shapes = {"lora_A": (rank, HIDDEN), "lora_B": (HIDDEN, rank)}
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "o_proj"],
    }
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.{name}.{part}.weight":
            torch.randn(shape, generator=chance)
        for layer in range(LAYERS)
        for name in PARTS
        for part, shape in shapes.items()
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@NEEDS_ADAPTED_RELOAD
def test_an_adapter_on_the_server_is_not_in_what_it_offers(
    fork_server: ForkServer, models: Any, tokens: Any, tmp_path: Path
) -> None:
    one, two = models
    with serving(fork_server, one.full, tmp_path, **ADAPTED) as (server, at):
        adapted = server.rpc("generate_adapted", str(adapter(tmp_path / "adapter")), PROMPTS)[0]
        assert adapted != tokens[0]
        assert server.generate() == next_client(fork_server, one, at) == tokens[0]
        server.rpc("reload_weights", weights_path=str(two.full))
        assert server.generate() == next_client(fork_server, one, at) == tokens[1]


@NEEDS_NO_ADAPTED_RELOAD
def test_layers_with_adapters_take_their_weights_again_from_a_source_alone(
    fork_server: ForkServer, models: Any, tokens: Any, tmp_path: Path
) -> None:
    """A checkpoint is refused before vLLM begins, and both engines answer as before."""
    one, two = models
    with (
        serving(fork_server, one.full, tmp_path, **ADAPTED) as (server, at),
        fork_server.engine(one.bare, only(at), **ADAPTED) as client,
    ):
        for engine in (server, client):
            with pytest.raises(EngineError, match=r"NotImplementedError: this vLLM cannot read"):
                engine.rpc("reload_weights", weights_path=str(two.full))
            assert engine.generate() == tokens[0]
        assert eventually(lambda: offers(server) == offers(client) == 2)
        client.rpc("reload_weights", weights_path=str(one.bare))
        assert received(client) == 2
        assert client.generate() == next_client(fork_server, one, at) == tokens[0]


def test_nothing_is_offered_in_sleep(
    fork_server: ForkServer, models: Any, serves: tuple[Engine, list[str]], tokens: Any
) -> None:
    """This CPU does not take the memory away; vLLM calls the methods all the same."""
    (one, _), (server, at) = models, serves
    server.rpc("sleep", 1)
    assert "netloader.reason=not_serving" in failing(fork_server, one.bare, only(at))
    server.rpc("wake_up")
    assert eventually(lambda: offers(server) == 2)
    assert next_client(fork_server, one, at) == tokens[0]


def test_an_update_by_a_trainer(
    fork_server: ForkServer, models: Any, tokens: Any, tmp_path: Path
) -> None:
    one, two = models
    trained: dict[str, Any] = {
        "weight_transfer_config": {"backend": "file"},
        "worker_extension_cls": INSIDE,
    }
    with serving(fork_server, one.full, tmp_path, **trained) as (server, at):
        server.rpc("init_weight_transfer_engine", {})
        server.rpc("start_weight_update")
        log = failing(fork_server, one.bare, only(at))
        assert "netloader.reason=not_serving" in log
        server.rpc("update_weights", {"file": str(two.full / "model.safetensors")})
        server.rpc("finish_weight_update")
        assert server.generate() == next_client(fork_server, one, at) == tokens[1]
        server.rpc("start_weight_update")
        with pytest.raises(EngineError):
            server.rpc("update_weights", {"file": str(tmp_path / "missing")})
        assert len(said(server, WITHDRAWN)) == 2
        assert "netloader.reason=not_serving" in failing(fork_server, one.bare, only(at))
