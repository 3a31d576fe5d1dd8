"""Memory of whole vLLM instances: `python benchmarks/instances.py`, after `make demo`.

Two questions, asked of the demo's model in float32, whose linear layers oneDNN packs out of sight:
what does it cost a server to keep the originals (WEIGHT_CACHE), and how much does a starting client
hold at most, beside one that loads from its disk? Each instance is a process of its own, and each
is started twice, in turn (A B A B).
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.memory import resident
from benchmarks.workload import MIB
from demo.paths import BARE_MODEL, MODEL
from netloader.vllm_plugin.inspect.parity.engine import ARGUMENTS, Engine, own_process

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
}
START_S = 300.0
CACHE_BYTES = 32 << 20
"""Of the KV cache: little, and the same everywhere."""
ROUNDS = 2


def memory_of(worker: object) -> tuple[int, int]:
    """Bytes held by a worker's process now, and at most."""
    del worker
    return resident("VmRSS"), resident("VmHWM")


@contextmanager
def instance(model: Path, folder: Path, extra: Mapping[str, Any]) -> Iterator[Engine]:
    """A running engine in float32; `extra` is netloader's configuration."""
    arguments = {
        **ARGUMENTS,
        "model": str(model),
        "dtype": "float32",
        "kv_cache_memory_bytes": CACHE_BYTES,
        "model_loader_extra_config": {"MODEL": "demo", "LISTEN_HOST": "127.0.0.1", **extra},
    }
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    with own_process(arguments, log, START_S) as engine:
        yield engine


def ask(engine: Engine) -> tuple[int, int]:
    """What one engine holds now, and held at most."""
    now, most = engine.tell(do="rpc", method=memory_of)[0]
    return now, most


def show(what: str, held: tuple[int, int]) -> None:
    now, most = held
    print(f"{what:<48} {now / MIB:8.0f} MiB now {most / MIB:8.0f} MiB at most", flush=True)


def main() -> None:
    """Print a line for each instance."""
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(ROUNDS):
            for cache in ("no", "auto"):
                with instance(MODEL, folder, {"WEIGHT_CACHE": cache}) as server:
                    show(f"server from disk, WEIGHT_CACHE {cache}", ask(server))
        prefix = {"OUTPUT_PREFIX": f"{folder}/rank-"}
        with instance(MODEL, folder, prefix):
            endpoint = (folder / "rank-0.txt").read_text()
            source = {"SOURCE": [{"device_id": 0, "sources": [endpoint]}], "FALLBACK": "never"}
            for _ in range(ROUNDS):
                for cache in ("no", "auto"):
                    kept = {"WEIGHT_CACHE": cache}
                    with instance(MODEL, folder, kept) as ordinary:
                        show(f"ordinary loader, WEIGHT_CACHE {cache}", ask(ordinary))
                    with instance(BARE_MODEL, folder, {**source, **kept}) as client:
                        show(f"client of a server, WEIGHT_CACHE {cache}", ask(client))


if __name__ == "__main__":
    main()
