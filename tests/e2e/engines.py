"""Real vLLM engines for tests: started from a nursery process, spoken to over a socket."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

PROMPTS = [[5, 6, 7, 8], [9, 10, 11]]
START_S = 240.0
"""A shared machine with two cores: an engine is up in 3 to 20 s, a first of its kind in 30 s."""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def free_port() -> int:
    """A port on which nobody listens: a dead source."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Engine:
    """One engine, of one or more ranks."""

    def __init__(self, connection: socket.socket, log: Path) -> None:
        self._connection = connection
        self._stream: TextIO = connection.makefile("rw")
        self._log = log

    def tell(self, **command: Any) -> dict[str, Any]:
        """Have a command carried out; `answer` is what comes back."""
        self._stream.write(json.dumps(command) + "\n")
        self._stream.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            AssertionError: it is an error, or the engine is gone; with the end of its log.
        """
        line = self._stream.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the engine is gone"}
        if "error" in answer:
            raise AssertionError(f"{answer['error']}\n{self.log()[-6000:]}")
        return answer

    def generate(self) -> list[list[int]]:
        """Greedy tokens for PROMPTS."""
        tokens: list[list[int]] = self.tell(do="generate", prompts=PROMPTS)["tokens"]
        return tokens

    def checksums(self) -> list[dict[str, str]]:
        """vLLM's checksum of every parameter, by rank."""
        sums: list[dict[str, str]] = self.tell(do="checksums")["checksums"]
        return sums

    def log(self) -> str:
        """Everything the engine has printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def close(self) -> None:
        """Let the engine's processes end."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._stream.close()
        self._connection.close()


class Nursery:
    """Starts engines; they all end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        self._address = str(folder / "nursery")
        script = Path(__file__).with_name("nursery.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), self._address],
            stdout=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    @contextlib.contextmanager
    def engine(
        self, model: Path, extra: dict[str, Any], ranks: int = 1, **options: Any
    ) -> Iterator[Engine]:
        """A running engine on `model` with load format netloader and this extra config."""
        self._count += 1
        log = self.folder / f"engine-{self._count}.log"
        spec = {
            "log": str(log),
            "env": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"} if ranks > 1 else {},
            "llm": _arguments(model, extra, ranks, options),
        }
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(START_S)
        connection.connect(self._address)
        connection.sendall((json.dumps(spec) + "\n").encode())
        engine = Engine(connection, log)
        try:
            assert engine.answer() == {"ready": True}
            yield engine
        finally:
            engine.close()

    def close(self) -> None:
        """End the nursery."""
        self._process.kill()
        self._process.communicate()


def _arguments(
    model: Path, extra: dict[str, Any], ranks: int, options: dict[str, Any]
) -> dict[str, Any]:
    parallel = {"tensor_parallel_size": ranks, "distributed_executor_backend": "mp"}
    return {
        "model": str(model),
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "kv_cache_memory_bytes": 32 << 20,
        "max_model_len": 128,
        "load_format": "netloader",
        "model_loader_extra_config": {"MODEL": "tiny", "LISTEN_HOST": "127.0.0.1", **extra},
        **(parallel if ranks > 1 else {}),
        **options,
    }
