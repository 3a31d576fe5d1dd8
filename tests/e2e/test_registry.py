"""Engines that know only a registry: the first loads and publishes itself, the next finds it."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from tests.e2e.engines import Engine, ForkServer
from tests.e2e.source_logs import records
from tests.support import zoo
from tests.support.registries import redis_server
from tests.unit.io.helpers import eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PATIENCE_S = 120.0


@pytest.mark.parametrize(("engines", "ranks"), [(3, 1), (2, 2)])
def test_of_engines_that_start_at_once_one_loads_and_the_others_fill_from_it(
    fork_server: ForkServer, tmp_path: Path, engines: int, ranks: int
) -> None:
    model = zoo.write(tmp_path / "m", zoo.llama_config(), zoo.llama_tensors(1, torch.bfloat16))
    logs = [tmp_path / f"{i}.json" for i in range(engines)]
    with redis_server() as (where, _), ExitStack() as stack, ThreadPoolExecutor() as threads:

        def start(log: Path) -> Engine:
            extra = {"SOURCE": f"redis://{where}/fleet", "LOG_JSON": str(log)}
            return stack.enter_context(fork_server.engine(model, extra, ranks))

        answers = [engine.generate() for engine in threads.map(start, logs)]

    assert answers == [answers[0]] * engines
    loads = [records(log, "netloader.loader.ordinary") for log in logs]
    assert sorted(map(len, loads)) == [0] * (engines - 1) + [ranks], "all ranks of one of them"
    received = [records(log, "netloader.loader.received") for log in logs]
    assert sorted(map(len, received)) == [0] + [ranks] * (engines - 1)


def test_the_first_loads_the_second_finds_it_and_who_is_killed_is_forgotten(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    model = zoo.write(tmp_path / "m", zoo.llama_config(), zoo.llama_tensors(1, torch.bfloat16))
    logs = [tmp_path / "a.json", tmp_path / "b.json"]
    with redis_server() as (where, _), redis.Redis(where.host, where.port) as client:

        def start(log: Path) -> Any:
            extra = {"SOURCE": f"redis://{where}/fleet", "LOG_JSON": str(log)}
            return fork_server.engine(model, extra)

        def named() -> set[str]:
            keys = client.keys("fleet:*:leases")
            now = client.time()[0]
            return {name.decode() for key in keys for name in client.zrangebyscore(key, now, "inf")}

        with start(logs[0]) as first:
            assert records(logs[0], "netloader.loader.ordinary")
            assert eventually(lambda: len(named()) == 1, PATIENCE_S)
            (place,) = named()
            with start(logs[1]) as second:
                (received,) = records(logs[1], "netloader.loader.received")
                assert received["netloader.source"] == place
                assert second.generate() == first.generate()
                assert eventually(lambda: len(named()) == 2, PATIENCE_S)
                os.kill(received["process.pid"], signal.SIGKILL)
                assert eventually(lambda: named() == {place}, PATIENCE_S), "its lease has ended"
        assert eventually(lambda: not named(), PATIENCE_S)
        assert records(logs[0], "netloader.publish.changed")[-1]["netloader.endpoint"] == place
