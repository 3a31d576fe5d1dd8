"""Everything was stopped: a snapshot that was taken before is the first source of all instances."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from tests.e2e.commands import folder_served, netloader
from tests.e2e.engines import Engine, ForkServer
from tests.e2e.source_logs import records
from tests.support import zoo
from tests.support.registries import redis_server

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

AT_ONCE = 4


def test_four_instances_start_from_a_snapshot_and_from_each_other(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    full = zoo.write(tmp_path / "full", zoo.llama_config(), zoo.llama_tensors(1, torch.bfloat16))
    bare = zoo.write(tmp_path / "bare", zoo.llama_config(), None)
    at = {"OUTPUT_PREFIX": f"{tmp_path}/server-"}
    with fork_server.engine(full, at) as before:
        expected, where = before.generate(), (tmp_path / "server-0.txt").read_text()
        netloader("snapshot", where, "--out", str(tmp_path / "kept"))

    logs = [tmp_path / f"{i}.json" for i in range(AT_ONCE)]
    with redis_server() as (redis, _), ExitStack() as stack, ThreadPoolExecutor() as threads:
        registry = f"redis://{redis}/fleet"
        words = ("--publish", registry, "--max-clients", "1")
        seed = stack.enter_context(folder_served(tmp_path / "kept", *words))

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
