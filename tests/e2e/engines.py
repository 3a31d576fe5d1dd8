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
    """A port for torch.distributed's own rendezvous, which cannot take an open socket."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Engine:
    """One engine, of one or more ranks."""

    def __init__(self, connections: list[socket.socket], logs: list[Path]) -> None:
        self._connections = connections
        self._streams: list[TextIO] = [c.makefile("rw") for c in connections]
        self._logs = logs

    def tell(self, *commands: dict[str, Any]) -> list[dict[str, Any]]:
        """Send each rank its command (or all the same one) and gather the answers."""
        each = commands if len(commands) == len(self._streams) else commands * len(self._streams)
        for stream, command in zip(self._streams, each, strict=True):
            stream.write(json.dumps(command) + "\n")
            stream.flush()
        return [self._answer(stream) for stream in self._streams]

    def _answer(self, stream: TextIO) -> dict[str, Any]:
        line = stream.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the engine is gone"}
        if "error" in answer:
            raise AssertionError(f"{answer['error']}\n{self.log()[-6000:]}")
        return answer

    def generate(self) -> list[list[int]]:
        """Greedy tokens for PROMPTS."""
        tokens: list[list[int]] = self.tell({"do": "generate", "prompts": PROMPTS})[0]["tokens"]
        return tokens

    def parameters(self) -> list[dict[str, str]]:
        """SHA-256 of every parameter, after post-processing, by rank."""
        return [answer["parameters"] for answer in self.tell({"do": "parameters"})]

    def log(self) -> str:
        """Everything the engine has printed."""
        return "\n".join(log.read_text(errors="replace") for log in self._logs if log.exists())

    def close(self) -> None:
        """Let the engine's processes end."""
        for stream, connection in zip(self._streams, self._connections, strict=True):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            stream.close()
            connection.close()


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
        engine = self._start(model, extra, ranks, options)
        try:
            for answer in [engine._answer(stream) for stream in engine._streams]:
                assert answer == {"ready": True}
            yield engine
        finally:
            engine.close()

    def _start(
        self, model: Path, extra: dict[str, Any], ranks: int, options: dict[str, Any]
    ) -> Engine:
        self._count += 1
        port = str(free_port())
        connections, logs = [], []
        for rank in range(ranks):
            log = self.folder / f"engine-{self._count}-{rank}.log"
            spec = {
                "log": str(log),
                "env": _environment(rank, ranks, port) if ranks > 1 else {},
                "llm": _arguments(model, extra, ranks, options),
            }
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(START_S)
            connection.connect(self._address)
            connection.sendall((json.dumps(spec) + "\n").encode())
            connections.append(connection)
            logs.append(log)
        return Engine(connections, logs)

    def close(self) -> None:
        """End the nursery."""
        self._process.kill()
        self._process.communicate()


def _environment(rank: int, ranks: int, port: str) -> dict[str, str]:
    """As torchrun sets it: vLLM's external launcher reads these."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "VLLM_CPU_OMP_THREADS_BIND": "0|1",
    }


def _arguments(
    model: Path, extra: dict[str, Any], ranks: int, options: dict[str, Any]
) -> dict[str, Any]:
    parallel = {"tensor_parallel_size": ranks, "distributed_executor_backend": "external_launcher"}
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
