"""Everything was stopped: a folder that was pulled before is the first source of all instances."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from tests.e2e.engines import Engine, ForkServer
from tests.e2e.source_logs import records
from tests.support import zoo
from tests.support.registries import redis_server

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

COMMAND = (sys.executable, "-m", "netloader")
LONG_S = 120.0
AT_ONCE = 4


@contextmanager
def served(folder: Path, registry: str) -> Iterator[str]:
    """`netloader serve` of a folder, in a process of its own; where it listens."""
    words = ("serve", str(folder), "--publish", registry, "--max-clients", "1", "--json")
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["endpoint"]
    finally:
        process.terminate()
        process.communicate(timeout=LONG_S)


def test_four_instances_start_from_a_pulled_folder_and_from_each_other(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    full = zoo.write(tmp_path / "full", zoo.llama_config(), zoo.llama_tensors(1, torch.bfloat16))
    bare = zoo.write(tmp_path / "bare", zoo.llama_config(), None)
    at = {"OUTPUT_PREFIX": f"{tmp_path}/server-"}
    with fork_server.engine(full, at) as before:
        expected, where = before.generate(), (tmp_path / "server-0.txt").read_text()
        pull = [*COMMAND, "pull", where, "--out", str(tmp_path / "kept")]
        subprocess.run(pull, check=True, timeout=LONG_S)

    logs = [tmp_path / f"{i}.json" for i in range(AT_ONCE)]
    with redis_server() as (redis, _), ExitStack() as stack, ThreadPoolExecutor() as threads:
        registry = f"redis://{redis}/fleet"
        seed = stack.enter_context(served(tmp_path / "kept", registry))

        def start(log: Path) -> Engine:
            extra = {
                "SOURCE": registry,
                "FALLBACK": "never",
                "RELAY": True,
                "LOG_JSON": str(log),
            }
            return stack.enter_context(fork_server.engine(bare, extra))

        answers = [engine.generate() for engine in threads.map(start, logs)]

    assert answers == [expected] * AT_ONCE
    received = [records(log, "netloader.loader.received") for log in logs]
    assert list(map(len, received)) == [1] * AT_ONCE
    assert seed in [one["netloader.source"] for (one,) in received]
