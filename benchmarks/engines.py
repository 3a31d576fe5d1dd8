"""The weights phase of a real vLLM engine: its ordinary loader, and netloader, in turns.

A dense model of 1.7 GiB with random weights. Each start is a process of its own; the servers are
more engines. The ordinary loader says itself how long its weights took; for netloader it is the
time from the first source that is tried to the line that says that all weights are there.
"""

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.contenders.files import FOLDER
from benchmarks.figures import EngineLoad
from benchmarks.page_cache import cool, warm
from netloader.vllm_plugin.inspect.parity.engine import (
    ARGUMENTS,
    Engine,
    EngineError,
    own_process,
)

ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
}
START_S: Final = 300.0
LEAST_WARM: Final = 1.5e9
"""Bytes a second: no disk that these benchmarks met reads faster, and any page cache does."""
CACHE_BYTES: Final = 32 << 20
TRANSPORTS: Final = ("tcp", "shm")
LAYERS, HIDDEN, INNER, VOCABULARY, HEADS, KV_HEADS = 18, 2048, 5632, 32_000, 32, 4
CONFIG: Final = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
TOOK: Final = re.compile(r"Loading weights took ([0-9.]+) seconds")
FIRST, LAST = "netloader.source.tried", "netloader.loader.received"


def engine_loads(
    rounds: int, say: Callable[[str], None]
) -> tuple[list[EngineLoad], dict[str, str]]:
    """Start every kind of engine `rounds` times, in turns; also why one could not be started."""
    os.environ.update(ENVIRONMENT)
    model, bare = dense_model()
    found: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as servers:
        folder = Path(name)
        sources = {
            transport: servers.enter_context(_server(model, folder, transport))
            for transport in TRANSPORTS
        }
        ways = _ways(model, bare, folder, sources)
        for number in range(rounds):
            for way, load in ways.items():
                if way in failed:
                    continue
                say(f"engine, {way}, {number + 1} of {rounds}")
                try:
                    found.setdefault(way, []).append(load())
                except EngineError as error:
                    failed[way] = error.reason
    loads = [EngineLoad(way, seconds) for way, seconds in found.items() if seconds]
    return loads, {f"engine, {way}": why for way, why in failed.items()}


def _warm(path: Path) -> None:
    """Have all of a file in the page cache.

    Raises:
        RuntimeError: the kernel does not keep it there.
    """
    warm(path)
    began = time.perf_counter()
    warm(path)
    if path.stat().st_size / (time.perf_counter() - began) < LEAST_WARM:
        raise RuntimeError("the page cache does not keep the file of the model")


@contextmanager
def _server(model: Path, folder: Path, transport: str) -> Iterator[str]:
    """Where an engine hands out its weights over one transport."""
    prefix = f"{folder}/{transport}-"
    with _engine(model, folder, {"OUTPUT_PREFIX": prefix, "TRANSPORT": transport}):
        yield Path(f"{prefix}0.txt").read_text().strip()


def _ways(
    model: Path, bare: Path, folder: Path, sources: Mapping[str, str]
) -> Mapping[str, Callable[[], float]]:
    def ordinary(*, cold: bool) -> float:
        for path in model.glob("*.safetensors"):
            (cool if cold else _warm)(path)
        with _engine(model, folder, {}, load_format="auto") as engine:
            took = TOOK.search(engine.log())
        if took is None:
            raise RuntimeError("the ordinary loader did not say how long its weights took")
        return float(took[1])

    def received(transport: str) -> float:
        events = folder / f"events-{len(list(folder.iterdir()))}.jsonl"
        extra = {
            "SOURCE": [{"device_id": 0, "sources": [sources[transport]]}],
            "FALLBACK": "never",
            "TRANSPORT": transport,
            "LOG_JSON": str(events),
        }
        with _engine(bare, folder, extra):
            return _phase(events)

    return {
        "ordinary, warm": lambda: ordinary(cold=False),
        "ordinary, cold": lambda: ordinary(cold=True),
        **{f"netloader {name}": partial(received, name) for name in TRANSPORTS},
    }


def _phase(events: Path) -> float:
    """Seconds between two lines of a JSON log."""
    moments: dict[str, datetime] = {}
    for line in events.read_text().splitlines():
        row = json.loads(line)
        moments.setdefault(row["event"], datetime.fromisoformat(row["timestamp"]))
    return (moments[LAST] - moments[FIRST]).total_seconds()


@contextmanager
def _engine(
    model: Path, folder: Path, extra: Mapping[str, Any], load_format: str = "netloader"
) -> Iterator[Engine]:
    own = {"model_loader_extra_config": {"MODEL": "bench", "LISTEN_HOST": "127.0.0.1", **extra}}
    arguments = {
        **ARGUMENTS,
        "model": str(model),
        "kv_cache_memory_bytes": CACHE_BYTES,
        "load_format": load_format,
        **(own if load_format == "netloader" else {}),
    }
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    with own_process(arguments, log, START_S) as engine:
        yield engine


def dense_model() -> tuple[Path, Path]:
    """The folder of the dense model, made once, and one that lacks only the weights."""
    from safetensors.torch import save_file

    full, bare = FOLDER / "dense", FOLDER / "dense-bare"
    weights = full / "model.safetensors"
    for folder in (full, bare):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIG))
    if not weights.exists():
        aside = weights.with_suffix(".making")
        save_file(_tensors(), aside, metadata={"format": "pt"})
        aside.rename(weights)
    return full, bare


def _tensors() -> dict[str, torch.Tensor]:
    kv = HIDDEN // HEADS * KV_HEADS
    layer = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (kv, HIDDEN),
        "self_attn.v_proj": (kv, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (VOCABULARY, HIDDEN),
        "model.norm": (HIDDEN,),
        "lm_head": (VOCABULARY, HIDDEN),
    }
    for i in range(LAYERS):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    generator = torch.Generator().manual_seed(1)
    return {
        f"{name}.weight": torch.randn(shape, generator=generator).mul_(0.02).to(torch.bfloat16)
        for name, shape in shapes.items()
    }
