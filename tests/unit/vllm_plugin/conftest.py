"""A worker process has one shop and one update at a time; each test that asks has its own."""

from collections.abc import Iterator

import pytest

from tests.unit.io.helpers import eventually, our_threads


@pytest.fixture
def worker_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if in a new worker process; nothing of ours runs after the test."""
    from netloader.vllm_plugin.patches import worker_methods
    from netloader.vllm_plugin.serve import server

    monkeypatch.setattr(server, "_shops", [])
    monkeypatch.setattr(worker_methods, "_update", worker_methods._Update())
    before = our_threads()
    yield
    for shop in server.shops():
        for role in shop.roles:
            shop._retire(role)
    assert eventually(lambda: our_threads() <= before), our_threads() - before
