"""Weights that fit and are wrong: each is refused, with the field that differs named."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from netloader.vllm_plugin.inspect.parity.engine import EngineError
from netloader.vllm_plugin.inspect.parity.run import without_weights
from tests.e2e.engines import Engine, ForkServer
from tests.support.zoo import dense, experts
from tests.support.zoo.checkpoint import Config, write

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Checkpoint = tuple[Config, dict[str, Tensor]]


def made(recipe: Callable[[], Any], seed: int = 1, **changes: Any) -> Checkpoint:
    found = recipe()
    return {**found.config, **changes}, found.tensors(seed, torch.bfloat16)


@contextmanager
def served(fork_server: ForkServer, folder: Path, **options: Any) -> Iterator[tuple[Engine, Any]]:
    """An engine that serves `folder`, and the SOURCE field that leads to it."""
    prefix = folder.with_name("address-")
    with fork_server.engine(folder, {"OUTPUT_PREFIX": str(prefix)}, **options) as engine:
        endpoint = Path(f"{prefix}0.txt").read_text()
        yield engine, {"SOURCE": [{"device_id": 0, "sources": [endpoint]}]}


def refused(engine: Engine, field: str) -> None:
    """The client named the field, and loaded its own checkpoint."""
    log = engine.log()
    assert "identity_mismatch" in log
    assert f"netloader.field='{field}" in log
    assert "netloader.loader.received" not in log


def test_the_same_names_with_experts_in_another_order(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    config, tensors = made(experts.mixtral)
    permuted = {_next_expert(name): tensor for name, tensor in tensors.items()}
    folder = write(tmp_path / "model", config, tensors)
    other = write(tmp_path / "other", config, permuted)
    with (
        served(fork_server, folder) as (server, source),
        fork_server.engine(other, source) as client,
        fork_server.engine(other, {}) as ordinary,
    ):
        refused(client, "checkpoint")
        assert client.held() == ordinary.held() != server.held()


def _next_expert(name: str) -> str:
    for expert in range(experts.EXPERTS):
        if f".experts.{expert}." in name:
            after = (expert + 1) % experts.EXPERTS
            return name.replace(f".experts.{expert}.", f".experts.{after}.")
    return name


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 500000.0},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rms_norm_eps": 1e-6},
        {"bos_token_id": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_same_weights_under_another_setting(
    fork_server: ForkServer, tmp_path: Path, change: Mapping[str, Any]
) -> None:
    config, tensors = made(dense.llama)
    folder = write(tmp_path / "model", config, tensors)
    other = write(tmp_path / "other", {**config, **change}, tensors)
    with served(fork_server, folder) as (_, source), fork_server.engine(other, source) as client:
        refused(client, "config")


def test_another_revision_of_the_checkpoint_at_the_same_path(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    folder = write(tmp_path / "model", *made(dense.llama, seed=1))
    with served(fork_server, folder) as (server, source):
        write(folder, *made(dense.llama, seed=2))
        with fork_server.engine(folder, source) as client:
            refused(client, "checkpoint")
            assert client.generate() != server.generate()


@pytest.mark.parametrize("mine", ["float16", "float32"])
def test_another_dtype(fork_server: ForkServer, tmp_path: Path, mine: str) -> None:
    folder = write(tmp_path / "model", *made(dense.llama))
    with (
        served(fork_server, folder, dtype="bfloat16") as (_, source),
        fork_server.engine(folder, source, dtype=mine) as client,
    ):
        refused(client, "dtype")


def test_a_client_without_files_has_nothing_to_fall_back_on(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    folder = write(tmp_path / "model", *made(dense.llama))
    bare = without_weights(folder, tmp_path / "bare")
    with (
        served(fork_server, folder, dtype="bfloat16") as (_, source),
        pytest.raises(EngineError, match="dtype: mine is"),
        fork_server.engine(bare, {**source, "FALLBACK": "never"}, dtype="float16"),
    ):
        pass
