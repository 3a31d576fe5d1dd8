"""A worker of vLLM's for the thread of a test that asks for one."""

from collections.abc import Iterator

import pytest

from tests.unit.io.helpers import eventually, our_threads


@pytest.fixture
def worker_process() -> Iterator[None]:
    """As if in a new worker process; nothing of ours runs after the test."""
    from netloader.vllm_plugin.serve.worker import Worker, running_for

    before = our_threads()
    with running_for(Worker()) as ours:
        yield
    for server in ours.servers:
        server.close()
    assert eventually(lambda: our_threads() <= before), our_threads() - before
