"""Servers and clients for engine tests: who offers what where, and what their logs say of it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from netloader.vllm_plugin.inspect.parity.engine import EngineError
from netloader.vllm_plugin.inspect.parity.rows import Held
from netloader.vllm_plugin.inspect.parity.run import PROMPTS
from tests.e2e.engines import ENVIRONMENT, Engine, ForkServer, _arguments
from tests.support.zoo.checkpoint import Config, Recipe, write

RELOAD = frozenset({"_do_torchao_reload", "_original_do_torchao_reload"})
ONLY_SOURCES = {"FALLBACK": "never"}
INSIDE = "tests.e2e.worker_extension.Inside"
"""What to give as `worker_extension_cls`, so that an engine knows what is in `inside`."""
STAGES: dict[str, Any] = {
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 2,
    "worker_extension_cls": INSIDE,
}
"""Options of an engine with `ranks=2` to be two pipeline stages."""

Sources = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Model:
    """A model folder, and its twin without any weight file."""

    full: Path
    bare: Path


def made(folder: Path, recipe: Recipe, seed: int = 1, dtype: torch.dtype = torch.bfloat16) -> Model:
    """A model with random weights."""
    return written(folder, recipe.config, recipe.tensors(seed, dtype))


def written(folder: Path, config: Config, tensors: dict[str, Tensor]) -> Model:
    """A model with these weights."""
    return Model(write(folder / "full", config, tensors), write(folder / "bare", config, None))


@contextmanager
def serving(
    fork_server: ForkServer,
    model: Path,
    scratch: Path,
    ranks: int = 1,
    extra: Sources | None = None,
    **options: Any,
) -> Iterator[tuple[Engine, list[str]]]:
    """An engine that offers its weights, and the endpoint of each rank."""
    prefix = scratch / f"{model.parent.name}-{ranks}-"
    extra = {"OUTPUT_PREFIX": str(prefix), **(extra or {})}
    with fork_server.engine(model, extra, ranks=ranks, **options) as engine:
        yield engine, [Path(f"{prefix}{rank}.txt").read_text() for rank in range(ranks)]


def sources(endpoints: Sequence[str]) -> Sources:
    """SOURCE for a client: rank i is to ask the i-th endpoint."""
    by_rank = enumerate(endpoints)
    return {"SOURCE": [{"device_id": rank, "sources": [at]} for rank, at in by_rank]}


def only(endpoints: Sequence[str]) -> Sources:
    """As `sources`, for a client that must not fall back."""
    return {**sources(endpoints), **ONLY_SOURCES}


def said(engine: Engine, event: str, *parts: str) -> list[str]:
    """The lines of an engine's log about an event in which all of `parts` occur."""
    lines = engine.log().splitlines()
    return [line for line in lines if f"{event} " in line and all(part in line for part in parts)]


def records(log: Path, event: str) -> list[dict[str, Any]]:
    """The records of one event that a JSON log has by now."""
    lines = log.read_text().splitlines() if log.exists() else []
    found = [json.loads(line) for line in lines if event in line]
    return [record for record in found if record["event"] == event]


def received(engine: Engine, *parts: str) -> int:
    """How often a source filled a model of this engine."""
    return len(said(engine, "netloader.loader.received", *parts))


def failing(
    fork_server: ForkServer, model: Path, extra: Sources, ranks: int = 1, **options: Any
) -> str:
    """The log of an engine that does not start."""
    with (
        pytest.raises(EngineError),
        fork_server.engine(model, extra, ranks=ranks, **options) as engine,
    ):
        pytest.fail(f"it is up\n{engine.log()}")
    return latest_log(fork_server)


def latest_log(fork_server: ForkServer) -> str:
    """What the engine has printed that was started last, or is being started."""
    logs = sorted(
        fork_server.folder.glob("engine-*.log"), key=lambda log: (len(log.name), log.name)
    )
    return logs[-1].read_text(errors="replace")


def inventory(engine: Engine) -> Any:
    """By rank and role: digests of every tensor that can be reached, and plain values."""
    return engine.tell(do="inventory")


def held(engine: Engine) -> list[dict[str, Held]]:
    """What an engine holds, without the flags with which vLLM remembers a reload in place.

    vLLM sets them on the root module when the reload begins, to False unless torchao quantizes;
    a server that was never reloaded has none.
    """
    return [{role: _unmarked(of) for role, of in rank.items()} for rank in engine.held()]


def _unmarked(of: Held) -> Held:
    return replace(of, scalars={k: v for k, v in of.scalars.items() if k not in RELOAD})


def accepted(engine: Engine) -> tuple[int, int]:
    """How many draft tokens are proposed for PROMPTS, and how many accepted."""
    proposed, good = engine.tell(do="generate", prompts=PROMPTS, tokens=8)[2]
    return proposed, good


@contextmanager
def replicator(fork_server: ForkServer) -> Iterator[Callable[[Path, Sources], tuple[Any, str]]]:
    """Starts pairs of data parallel replicas; each start gives their tokens, and their log."""
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.replicas"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **ENVIRONMENT, **environment},
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    order, answer = process.stdin, process.stdout

    def start(model: Path, extra: Sources) -> tuple[Any, str]:
        log = fork_server.folder / f"replicas-{model.name}.log"
        asked = {"skip_tokenizer_init": True, "max_model_len": 128}
        llm = _arguments(model, extra, 1, asked)
        print(json.dumps({"log": str(log), "replicas": 2, "llm": llm}), file=order, flush=True)
        tokens = json.loads(answer.readline() or "null")
        return tokens, log.read_text(errors="replace")

    try:
        yield start
    finally:
        process.communicate()
