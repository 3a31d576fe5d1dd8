"""The size of the KV cache: measured, or taken over under the conditions of its measurement."""

from types import SimpleNamespace
from typing import Any

import pytest

from netloader.files.hints import KvSize
from netloader.log import capture
from netloader.vllm_plugin.serve.kv_cache import MARGIN, KvCache

GIB = 1 << 30
HERE = {"vllm": "1", "max_model_len": "512"}
HINT = KvSize(20 * GIB, 70 * GIB, HERE)


def a_worker(given: int | None = None, free: int = 70 * GIB) -> Any:
    """What vLLM's worker has."""
    snapshot = SimpleNamespace(free_memory=free)
    config = SimpleNamespace(kv_cache_memory_bytes=given)
    return SimpleNamespace(init_snapshot=snapshot, cache_config=config)


def asked(kv_cache: KvCache, worker: Any, measured: int = 7 * GIB) -> int:
    """What vLLM gets: as its own workers, the given size if there is one."""
    config = worker.cache_config
    return kv_cache.measured_by(worker, lambda: config.kv_cache_memory_bytes or measured)


def ours(hint: KvSize | None = None) -> KvCache:
    kv_cache = KvCache()
    kv_cache.conditions, kv_cache.hint = HERE, hint
    return kv_cache


def test_what_a_source_measured_is_taken_less_a_margin_and_told_on_as_it_was() -> None:
    kv_cache = ours(HINT)
    with capture() as lines:
        assert asked(kv_cache, a_worker()) == int(20 * GIB * (1 - MARGIN))
    assert kv_cache.measured == HINT, "the next one takes no second margin"
    assert [line["event"] for line in lines] == ["netloader.caches.taken"]


def test_without_a_source_what_is_measured_here_is_told() -> None:
    kv_cache = ours()
    assert asked(kv_cache, a_worker(free=9 * GIB)) == 7 * GIB
    assert kv_cache.measured == KvSize(7 * GIB, 9 * GIB, HERE)


def test_a_size_that_the_operator_gave_wins_and_is_not_told() -> None:
    kv_cache = ours(HINT)
    assert asked(kv_cache, a_worker(given=GIB)) == GIB
    assert kv_cache.measured is None


@pytest.mark.parametrize(
    ("hint", "free", "words"),
    [
        (KvSize(GIB, GIB, {**HERE, "max_model_len": "9"}), 70, "max_model_len: mine is '512'"),
        (KvSize(GIB, GIB, {**HERE, "device_bytes": "1"}), 70, "device_bytes: mine is '(absent)'"),
        (HINT, 69, f"{69 * GIB} bytes are free here, {70 * GIB} were free at the source"),
    ],
)
def test_under_other_conditions_it_is_measured_anew_and_the_log_says_why(
    hint: KvSize, free: int, words: str
) -> None:
    kv_cache = ours(hint)
    with capture() as lines:
        assert asked(kv_cache, a_worker(free=free * GIB)) == 7 * GIB
    (line,) = lines
    assert line["event"] == "netloader.caches.refused"
    assert words in line["netloader.detail"]
    assert kv_cache.measured == KvSize(7 * GIB, free * GIB, HERE)


def test_a_little_less_free_memory_is_covered_by_the_margin() -> None:
    free = int(70 * GIB - 20 * GIB * MARGIN / 2)
    assert asked(ours(HINT), a_worker(free=free)) == int(20 * GIB * (1 - MARGIN))


def test_nothing_is_told_where_caches_are_not_wanted() -> None:
    kv_cache = KvCache()
    assert asked(kv_cache, a_worker()) == 7 * GIB
    assert kv_cache.measured is None


def test_an_error_here_does_not_reach_vllm() -> None:
    kv_cache = ours(HINT)
    broken = SimpleNamespace(init_snapshot=None)
    with capture() as lines:
        assert kv_cache.measured_by(broken, lambda: 5) == 5
    assert {line["event"] for line in lines} == {"netloader.driver.error"}
