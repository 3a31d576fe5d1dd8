"""A worker process has one shop and one update at a time; each test that asks has its own."""

from collections.abc import Iterator

import pytest

from tests.unit.io.helpers import eventually, our_threads


@pytest.fixture
def worker_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if in a new worker process; nothing of ours runs after the test."""
    from netloader.vllm_plugin import fence, publish

    monkeypatch.setattr(publish, "_shops", [])
    monkeypatch.setattr(fence, "_update", fence._Update())
    before = our_threads()
    yield
    for shop in publish.shops():
        for role in shop.roles:
            shop._retire(role)
    assert eventually(lambda: our_threads() <= before), our_threads() - before
