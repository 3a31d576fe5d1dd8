"""Instances that start together, with RELAY, from a server that has one place."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from netloader.config import Endpoint
from tests.e2e.engines import Engine, ForkServer
from tests.e2e.source_logs import records
from tests.support import zoo
from tests.support.relay import Fault, Relay
from tests.unit.io.helpers import MIB, eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

DTYPE = "float32"
"""On a CPU, oneDNN packs such weights in post-processing, so a relay must have ended before."""
PATIENCE_S = 120.0
SHARED = {
    "MAX_CLIENTS": 1,
    "SEGMENT_MIB": 1,
    "LANES": 1,
    "STALL_TIMEOUT_S": PATIENCE_S,
    "QUEUE_TIMEOUT_S": PATIENCE_S,
}


class Held(Relay):
    """The way to the server: after some bytes of weights it waits, until it is opened."""

    def __init__(self, target: Endpoint, at: int) -> None:
        self.open = threading.Event()
        super().__init__(target, Fault.GARBLE, at)

    def _through(self, data: bytes) -> bytes:
        with self._lock:
            self._left -= len(data)
        assert self._left > 0 or self.open.wait(PATIENCE_S)
        return data


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def sending(log: Path) -> bool:
    """Whether the instance of a log has begun to send what it receives."""
    started = records(log, "netloader.transfer.started")
    return any(record["netloader.side"] == "server" for record in started)


def test_two_that_start_together_feed_each_other_and_answer_like_the_server(
    fork_server: ForkServer, stack: ExitStack, tmp_path: Path
) -> None:
    config = zoo.llama_config(torch_dtype=DTYPE)
    full = zoo.write(tmp_path / "full", config, zoo.llama_tensors(1, torch.float32))
    bare = zoo.write(tmp_path / "bare", config, None)
    at_server = {**SHARED, "OUTPUT_PREFIX": f"{tmp_path}/server-"}
    server = stack.enter_context(fork_server.engine(full, at_server, dtype=DTYPE))
    endpoint = Endpoint.parse((tmp_path / "server-0.txt").read_text())
    wire = stack.enter_context(Held(endpoint, 3 * MIB + MIB // 2))
    stack.callback(wire.open.set)
    logs = [tmp_path / f"{name}.json" for name in "ab"]

    def start(log: Path) -> Engine:
        extra = {
            **SHARED,
            "SOURCE": [{"device_id": 0, "sources": [str(wire.endpoint)]}],
            "RELAY": True,
            "FALLBACK": "never",
            "TRANSPORT": "tcp",
            "OUTPUT_PREFIX": f"{tmp_path}/{log.stem}-",
            "LOG_JSON": str(log),
        }
        return stack.enter_context(fork_server.engine(bare, extra, dtype=DTYPE))

    with ThreadPoolExecutor() as threads:
        starts = [threads.submit(start, log) for log in logs]
        fed = eventually(lambda: any(map(sending, logs)), PATIENCE_S)
        wire.open.set()
        clients = [started.result() for started in starts]

    assert fed, "the second one is sent what the first one has received so far"
    expected = server.generate()
    assert [client.generate() for client in clients] == [expected, expected]
    assert [client.held() for client in clients] == [server.held(), server.held()]
    for log in logs:
        assert len(records(log, "netloader.loader.received")) == 1
        assert len(records(log, "netloader.server.offered")) == 1
        assert not records(log, "netloader.driver.error")
        place = (tmp_path / f"{log.stem}-0.txt").read_text()
        assert records(log, "netloader.server.offered")[0]["netloader.endpoint"] == place
