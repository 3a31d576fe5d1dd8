"""Which form weights travel in: kept originals, processed tensors, and what follows a failure."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from netloader.config import Endpoint
from netloader.vllm_plugin.inspect.parity.engine import EngineError
from tests.e2e.engines import NEEDS_LATENT_ATTENTION, NEEDS_ONLINE, NEEDS_OPEN, Engine, ForkServer
from tests.support.relay import Fault, Relay
from tests.support.zoo import dense, experts
from tests.support.zoo.checkpoint import Config, write
from tests.support.zoo.quantized import quantized_llama

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

OPEN: dict[str, Any] = {
    "worker_extension_cls": "tests.e2e.processed_on_cpu.Allowed",
    # oneDNN then packs no bfloat16 layers; with AMX, vLLM packs them into tensors that can be read
    "environment": {} if torch.cpu._is_amx_tile_supported() else {"ONEDNN_MAX_CPU_ISA": "AVX2"},
}
"""Options of an engine that uses the processed layout on a CPU, where bfloat16 linear layers hide
nothing. What is left of post-processing then is in reach: fused experts are replaced, MLA gets new
parameters."""
NEVER = {"FALLBACK": "never"}
EARLY = 100_000
"""Bytes of weights that arrive before the one that is garbled."""

Made = tuple[Config, dict[str, torch.Tensor]]
MODELS: dict[str, Made] = {
    "mixtral": (experts.mixtral().config, experts.mixtral().tensors(1, torch.bfloat16)),
    "deepseek_v2": (experts.deepseek_v2().config, experts.deepseek_v2().tensors(1, torch.bfloat16)),
}


def folders(root: Path, made: Made) -> tuple[Path, Path]:
    """A model folder, and its twin without weight files."""
    config, tensors = made
    return write(root / "full", config, tensors), write(root / "bare", config, None)


@contextmanager
def serving(
    fork_server: ForkServer, folder: Path, prefix: Path, extra: dict[str, Any], **options: Any
) -> Iterator[tuple[Engine, dict[str, Any]]]:
    """A server, and the extra config that names it as a source."""
    with fork_server.engine(folder, {"OUTPUT_PREFIX": str(prefix), **extra}, **options) as engine:
        endpoint = Path(f"{prefix}0.txt").read_text()
        yield engine, {"SOURCE": [{"device_id": 0, "sources": [endpoint]}]}


@contextmanager
def garbled(source: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same source behind a wire that changes one byte."""
    endpoint = Endpoint.parse(source["SOURCE"][0]["sources"][0])
    with Relay(endpoint, Fault.GARBLE, EARLY) as relay:
        sources = [str(relay.endpoint)]
        yield {"SOURCE": [{"device_id": 0, "sources": sources}], "LANES": 1, "TRANSPORT": "tcp"}


@NEEDS_OPEN
@pytest.mark.parametrize(
    "name", ["mixtral", pytest.param("deepseek_v2", marks=NEEDS_LATENT_ATTENTION)]
)
def test_processed_tensors_are_received_in_place_and_served_on(
    fork_server: ForkServer, tmp_path: Path, name: str
) -> None:
    full, bare = folders(tmp_path, MODELS[name])
    with serving(fork_server, full, tmp_path / "a-", {"LAYOUT": "processed"}, **OPEN) as (
        server,
        source,
    ):
        expected, held = server.generate(), server.tell(do="inventory")
        with serving(fork_server, bare, tmp_path / "b-", {**source, **NEVER}, **OPEN) as (
            client,
            onward,
        ):
            assert "netloader.layout=processed netloader.transfer.bytes" in client.log()
            assert client.generate() == expected
            assert client.tell(do="inventory") == held
            with fork_server.engine(bare, {**onward, **NEVER}, **OPEN) as grandchild:
                assert grandchild.generate() == expected


@NEEDS_OPEN
def test_processed_takes_over_where_originals_are_not_kept_and_nothing_is_hidden(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    full, bare = folders(tmp_path, MODELS["mixtral"])
    with serving(fork_server, full, tmp_path / "a-", {"WEIGHT_CACHE": "no"}, **OPEN) as (
        server,
        source,
    ):
        assert "netloader.layout=processed" in server.log()
        assert "netloader.cached_bytes=0 netloader.cached_in=nowhere" in server.log()
        with fork_server.engine(bare, {**source, **NEVER}, **OPEN) as client:
            assert client.generate() == server.generate()


@pytest.mark.parametrize(
    ("dtype", "options", "why"),
    [
        ("bfloat16", {}, "the processed layout is not possible on this device"),
        ("float32", OPEN, "kernels keep weights out of sight"),
    ],
    ids=["not on a CPU", "packed by oneDNN"],
)
def test_what_kernels_hide_is_not_offered(
    fork_server: ForkServer, tmp_path: Path, dtype: str, options: dict[str, Any], why: str
) -> None:
    made = dense.llama(torch_dtype=dtype)
    full, _ = folders(tmp_path, (made.config, made.tensors(1, getattr(torch, dtype))))
    extra = {"LAYOUT": "processed", "OUTPUT_PREFIX": f"{tmp_path}/a-"}
    with fork_server.engine(full, extra, dtype=dtype, **options) as server:
        assert "netloader.server.refused" in server.log()
        assert why in server.log()
        assert not (tmp_path / "a-0.txt").exists()


@pytest.mark.parametrize(
    ("extra", "options"),
    [
        pytest.param({"LAYOUT": "processed"}, OPEN, marks=NEEDS_OPEN),
        pytest.param({}, {"quantization": "fp8_per_channel"}, marks=NEEDS_ONLINE),
    ],
    ids=["processed", "quantized while loading"],
)
def test_placeholders_that_stay_so_are_thrown_away_and_the_model_is_built_anew(
    fork_server: ForkServer, tmp_path: Path, extra: dict[str, Any], options: dict[str, Any]
) -> None:
    # Post-processing has run, layer names are taken: the ordinary loader could not go on from here.
    made = dense.llama()
    full, _ = folders(tmp_path, (made.config, made.tensors(1, torch.bfloat16)))
    with serving(fork_server, full, tmp_path / "a-", extra, **options) as (server, source):
        with (
            garbled(source) as bad,
            serving(fork_server, full, tmp_path / "b-", bad, **options) as (client, onward),
        ):
            assert "digest_mismatch" in client.log()
            assert "netloader.fallback.engaged" in client.log()
            assert client.generate() == server.generate()
            assert client.tell(do="inventory") == server.tell(do="inventory")
            with fork_server.engine(full, {**onward, **NEVER}, **options) as next_one:
                assert next_one.generate() == server.generate()
        with (
            garbled(source) as bad,
            pytest.raises(EngineError, match="FALLBACK is never"),
            fork_server.engine(full, {**bad, **NEVER}, **options),
        ):
            pass


@pytest.mark.parametrize(
    ("extra", "remedy"),
    [
        ({}, "set INT8_CACHE to dram"),
        (
            {"INT8_CACHE": "hbm", "INT8_CACHE_NAME": ["layers.0."]},
            "name them in INT8_CACHE_NAME, or leave it out",
        ),
        ({"INT8_CACHE": "hbm"}, ""),
        ({"INT8_CACHE": "dram", "INT8_CACHE_NAME": ["qkv_proj", "o_proj", "mlp"]}, ""),
    ],
    ids=["no", "some by name", "hbm", "all by name"],
)
def test_int8_originals_are_kept_as_told_or_named_with_what_would_help(
    fork_server: ForkServer, tmp_path: Path, extra: dict[str, Any], remedy: str
) -> None:
    full, bare = folders(tmp_path, quantized_llama("w8a8"))
    prefix = {"OUTPUT_PREFIX": f"{tmp_path}/a-"}
    with fork_server.engine(full, {**prefix, **extra}) as server:
        if remedy:
            assert remedy in server.log()
            assert "model.layers.1.self_attn.qkv_proj.weight" in server.log()
            assert not (tmp_path / "a-0.txt").exists()
            return
        sources = [(tmp_path / "a-0.txt").read_text()]
        source = {"SOURCE": [{"device_id": 0, "sources": sources}]}
        with fork_server.engine(bare, {**source, **NEVER}) as client:
            assert client.generate() == server.generate()
