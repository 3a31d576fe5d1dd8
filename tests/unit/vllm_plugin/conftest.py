"""A process is one worker; each test that asks for one has its own."""

from collections.abc import Iterator

import pytest

from tests.unit.io.helpers import eventually, our_threads


@pytest.fixture
def worker_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if in a new worker process; nothing of ours runs after the test."""
    from netloader.vllm_plugin.serve import worker

    monkeypatch.setattr(worker, "_PROCESS", worker.Worker())
    before = our_threads()
    yield
    for server in worker.this_worker().servers:
        for role in server.roles:
            server._retire(role)
    assert eventually(lambda: our_threads() <= before), our_threads() - before
