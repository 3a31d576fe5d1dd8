"""Two real vLLM engines: the second answers token for token like the first."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from netloader.vllm_plugin.inspect.parity.engine import EngineError
from tests.e2e.engines import Engine, ForkServer
from tests.support import zoo
from tests.support.ports import free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

Folders = tuple[Path, Path]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Folders]:
    """A model folder and its twin without any weight file, by dtype."""
    root = tmp_path_factory.mktemp("models")

    def make(dtype: str) -> Folders:
        config = zoo.llama_config(torch_dtype=dtype)
        full, bare = root / dtype / "full", root / dtype / "bare"
        if not full.exists():
            zoo.write(full, config, zoo.llama_tensors(1, DTYPES[dtype]))
            zoo.write(bare, config, None)
        return full, bare

    return make


@pytest.fixture(scope="module")
def server(
    fork_server: ForkServer,
    folders: Callable[[str], Folders],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Engine, str]]:
    """A running bfloat16 engine with weights on offer, and its endpoint."""
    prefix = tmp_path_factory.mktemp("server") / "rank-"
    full, _ = folders("bfloat16")
    with fork_server.engine(full, {"OUTPUT_PREFIX": str(prefix)}) as engine:
        yield engine, Path(f"{prefix}0.txt").read_text()


def source(*endpoints: str) -> dict[str, Any]:
    """A SOURCE field: for rank i, in order, the endpoints at i, or all of them for rank 0."""
    return {"SOURCE": [{"device_id": 0, "sources": list(endpoints)}]}


def sources_by_rank(*endpoints: str) -> dict[str, Any]:
    return {"SOURCE": [{"device_id": i, "sources": [e]} for i, e in enumerate(endpoints)]}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_client_without_weight_files_answers_like_its_server_and_serves_the_next(
    fork_server: ForkServer, folders: Callable[[str], Folders], tmp_path: Path, dtype: str
) -> None:
    full, bare = folders(dtype)
    with (
        fork_server.engine(full, {"OUTPUT_PREFIX": f"{tmp_path}/a-"}, dtype=dtype) as server,
        fork_server.engine(
            bare,
            {
                **source((tmp_path / "a-0.txt").read_text()),
                "OUTPUT_PREFIX": f"{tmp_path}/b-",
                "FALLBACK": "never",
            },
            dtype=dtype,
        ) as client,
    ):
        expected = server.generate()
        assert client.generate() == expected
        assert client.held() == server.held()
        server.close()
        second = {**source((tmp_path / "b-0.txt").read_text()), "FALLBACK": "never"}
        with fork_server.engine(bare, second, dtype=dtype) as grandchild:
            assert grandchild.generate() == expected


def test_tensor_parallel_two_fills_each_rank_from_its_own(
    fork_server: ForkServer, folders: Callable[[str], Folders], tmp_path: Path
) -> None:
    full, bare = folders("bfloat16")
    with fork_server.engine(full, {"OUTPUT_PREFIX": f"{tmp_path}/tp-"}, ranks=2) as server:
        endpoints = [(tmp_path / f"tp-{rank}.txt").read_text() for rank in range(2)]
        extra = {**sources_by_rank(*endpoints), "FALLBACK": "never"}
        with fork_server.engine(bare, extra, ranks=2) as client:
            assert client.generate() == server.generate()
            assert client.held() == server.held()
        shards = server.held()
        swapped = {**sources_by_rank(*reversed(endpoints)), "FALLBACK": "never"}
        assert shards[0] != shards[1]
        with (
            pytest.raises(EngineError, match="tensor_parallel"),
            fork_server.engine(bare, swapped, ranks=2),
        ):
            pass


def test_dead_first_source_costs_nothing_but_a_line(
    fork_server: ForkServer, folders: Callable[[str], Folders], server: tuple[Engine, str]
) -> None:
    _, bare = folders("bfloat16")
    engine, endpoint = server
    dead = f"127.0.0.1:{free_port()}"
    with fork_server.engine(bare, {**source(dead, endpoint), "FALLBACK": "never"}) as client:
        assert client.generate() == engine.generate()
        assert "netloader.reason=unreachable" in client.log()
        assert "netloader.source.attempt=2" in client.log()
        assert "Receiver weights: 100% Completed" in client.log()


def test_no_source_left_falls_back_to_the_checkpoint_and_answers_the_same(
    fork_server: ForkServer, folders: Callable[[str], Folders], server: tuple[Engine, str]
) -> None:
    full, _ = folders("bfloat16")
    with fork_server.engine(full, source(f"127.0.0.1:{free_port()}")) as client:
        assert client.generate() == server[0].generate()
        assert "netloader.fallback.engaged" in client.log()
        assert "unreachable" in client.log()


def test_another_model_is_refused_with_the_differing_field_named(
    fork_server: ForkServer, tmp_path: Path, server: tuple[Engine, str]
) -> None:
    config = zoo.llama_config(rope_theta=500000.0)
    other = zoo.write(tmp_path / "other", config, zoo.llama_tensors(2, torch.bfloat16))
    with (
        fork_server.engine(other, {}) as ordinary,
        fork_server.engine(other, source(server[1])) as client,
    ):
        assert client.generate() == ordinary.generate()
        assert "identity_mismatch" in client.log()
        assert "netloader.field='config.rope_parameters'" in client.log()
        assert "netloader.fallback.engaged" in client.log()


@pytest.mark.parametrize("identical", [True, False], ids=["same lm_head", "other lm_head"])
def test_tied_config_with_an_lm_head_in_the_files(
    fork_server: ForkServer, tmp_path: Path, identical: bool
) -> None:
    config = zoo.llama_config(tie_word_embeddings=True)
    tensors = zoo.llama_tensors(3, torch.bfloat16)
    if identical:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    full = zoo.write(tmp_path / "full", config, tensors)
    bare = zoo.write(tmp_path / "bare", config, None)
    with fork_server.engine(full, {"OUTPUT_PREFIX": f"{tmp_path}/a-"}) as server:
        extra = {**source((tmp_path / "a-0.txt").read_text()), "FALLBACK": "never"}
        with fork_server.engine(bare, extra) as client:
            assert client.generate() == server.generate()


@pytest.mark.parametrize("bad", ["busy", "reserved"])
def test_a_bad_port_leaves_the_engine_alone(
    fork_server: ForkServer, folders: Callable[[str], Folders], server: tuple[Engine, str], bad: str
) -> None:
    full, _ = folders("bfloat16")
    engine, endpoint = server
    port = int(endpoint.rpartition(":")[2]) if bad == "busy" else 80
    with fork_server.engine(full, {"LISTEN_PORT": port}) as second:
        assert second.generate() == engine.generate()
        said = "netloader.listener.failed" if bad == "busy" else "outside 1024-65535"
        assert said in second.log()


def test_a_token_keeps_others_out(
    fork_server: ForkServer, folders: Callable[[str], Folders], tmp_path: Path
) -> None:
    full, bare = folders("bfloat16")
    token = tmp_path / "token"
    token.write_text("correct horse battery staple")
    known = {"AUTH_TOKEN_FILE": str(token)}
    with fork_server.engine(full, {"OUTPUT_PREFIX": f"{tmp_path}/a-", **known}) as server:
        at = source((tmp_path / "a-0.txt").read_text())
        with fork_server.engine(bare, {**at, **known, "FALLBACK": "never"}) as client:
            assert client.generate() == server.generate()
            assert "correct horse" not in client.log() + server.log()
        with fork_server.engine(full, at) as stranger:
            assert stranger.generate() == server.generate()
            assert "netloader.reason=auth_required" in stranger.log()


def test_the_cache_switched_off_means_no_offer_rather_than_a_wrong_one(
    fork_server: ForkServer, folders: Callable[[str], Folders], tmp_path: Path
) -> None:
    full, _ = folders("float32")
    extra = {"WEIGHT_CACHE": "no", "OUTPUT_PREFIX": f"{tmp_path}/a-"}
    with fork_server.engine(full, extra, dtype="float32") as server:
        server.generate()
        assert "netloader.server.refused" in server.log()
        assert "WEIGHT_CACHE" in server.log()
        assert not (tmp_path / "a-0.txt").exists()


def test_a_wrong_setting_is_refused_at_start_with_every_problem(
    fork_server: ForkServer, folders: Callable[[str], Folders]
) -> None:
    full, _ = folders("bfloat16")
    with (
        pytest.raises(EngineError) as refusal,
        fork_server.engine(full, {"SORCE": [], "MAX_CLIENTS": 0}),
    ):
        pass
    assert "did you mean SOURCE" in str(refusal.value)
    assert "MAX_CLIENTS" in str(refusal.value)
