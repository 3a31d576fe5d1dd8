"""The size of the KV cache: measured, or taken over under the conditions of its measurement."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from netloader.files.hints import KvSize
from netloader.log import capture
from netloader.vllm_plugin.serve.kv_cache import MARGIN, KvCache

GIB = 1 << 30
LOADED = {"vllm": "1", "max_model_len": "512"}
HERE = {**LOADED, "device_bytes": str(80 * GIB)}
TAKEN = 30 * GIB
HINT = KvSize(20 * GIB, 70 * GIB, TAKEN, HERE)


def a_worker(given: int | None = None, free: int = 70 * GIB, taken: int = TAKEN) -> Any:
    """What vLLM's worker has; `taken` bytes are, when it is asked what it can have."""

    class Snapshot:
        """As vLLM's: of the device when it is made, and of its worker's start."""

        def __init__(self, device: str) -> None:
            self.device_ = device
            self.total_memory, self.free_memory = 80 * GIB, free - taken

    before = Snapshot("npu:3")
    before.free_memory = free
    config = SimpleNamespace(kv_cache_memory_bytes=given)
    return SimpleNamespace(init_snapshot=before, cache_config=config)


def asked(kv_cache: KvCache, worker: Any, measured: int = 7 * GIB) -> int:
    """What vLLM gets: as its own workers, the given size if there is one."""
    config = worker.cache_config
    return kv_cache.measured_by(worker, lambda: config.kv_cache_memory_bytes or measured)


def ours(hint: KvSize | None = None) -> KvCache:
    kv_cache = KvCache()
    kv_cache.conditions, kv_cache.hint = LOADED, hint
    return kv_cache


def test_what_a_source_measured_is_taken_less_a_margin_and_told_on_as_it_was() -> None:
    kv_cache = ours(HINT)
    with capture() as lines:
        assert asked(kv_cache, a_worker()) == int(20 * GIB * (1 - MARGIN))
    assert kv_cache.measured == HINT, "the next one takes no second margin"
    assert [line["event"] for line in lines] == ["netloader.caches.taken"]


def test_without_a_source_what_is_measured_here_is_told() -> None:
    kv_cache = ours()
    assert asked(kv_cache, a_worker(free=9 * GIB, taken=GIB)) == 7 * GIB
    assert kv_cache.measured == KvSize(7 * GIB, 9 * GIB, GIB, HERE)


def test_a_size_that_the_operator_gave_wins_and_is_not_told() -> None:
    kv_cache = ours(HINT)
    assert asked(kv_cache, a_worker(given=GIB)) == GIB
    assert kv_cache.measured is None


@pytest.mark.parametrize(
    ("here", "free", "taken", "words"),
    [
        ({"max_model_len": "9"}, 70, 30, "max_model_len: mine is '512', theirs is '9'"),
        ({"device_bytes": "1"}, 70, 30, f"device_bytes: mine is '{80 * GIB}'"),
        ({"WEIGHT_CACHE": "hbm"}, 70, 30, "WEIGHT_CACHE: mine is '(absent)'"),
        ({}, 69, 30, f"here {69 * GIB} bytes were free and {30 * GIB} are taken"),
        ({}, 70, 31, f"here {70 * GIB} bytes were free and {31 * GIB} are taken"),
        ({}, 80, 31, f"{31 * GIB} are taken, at the source {70 * GIB} and {30 * GIB}"),
    ],
)
def test_under_other_conditions_it_is_measured_anew_and_the_log_says_why(
    here: dict[str, str], free: int, taken: int, words: str
) -> None:
    kv_cache = ours(replace(HINT, of={**HERE, **here}))
    with capture() as lines:
        assert asked(kv_cache, a_worker(free=free * GIB, taken=taken * GIB)) == 7 * GIB
    (line,) = lines
    assert line["event"] == "netloader.caches.refused"
    assert words in line["netloader.detail"]
    assert kv_cache.measured == KvSize(7 * GIB, free * GIB, taken * GIB, HERE)


def test_a_little_less_free_memory_is_covered_by_the_margin() -> None:
    little = int(20 * GIB * MARGIN)
    less, more = a_worker(free=70 * GIB - little), a_worker(taken=TAKEN + little)
    assert asked(ours(HINT), less) == asked(ours(HINT), more) == int(20 * GIB * (1 - MARGIN))
    both = a_worker(free=70 * GIB - little, taken=TAKEN + little)
    assert asked(ours(HINT), both) == 7 * GIB, "there is one margin, not one for each"


def test_of_a_host_without_a_device_its_memory_counts() -> None:
    kv_cache, on_a_cpu = ours(), SimpleNamespace(cache_config=a_worker().cache_config)
    assert asked(kv_cache, on_a_cpu) == 7 * GIB
    assert kv_cache.measured is not None
    assert kv_cache.measured.of["device_bytes"] == str(psutil.virtual_memory().total)
    assert 0 < kv_cache.measured.free_bytes < psutil.virtual_memory().total
    assert kv_cache.measured.taken_bytes == 0


def test_nothing_is_told_or_looked_at_where_caches_are_not_wanted() -> None:
    kv_cache = KvCache()
    unlike_vllm = SimpleNamespace(init_snapshot=object(), cache_config=a_worker().cache_config)
    with capture() as lines:
        assert asked(kv_cache, unlike_vllm) == 7 * GIB
    assert (kv_cache.measured, lines) == (None, [])


def test_a_size_is_not_told_of_a_worker_whose_memory_is_not_known() -> None:
    kv_cache = ours(HINT)
    unlike_vllm = SimpleNamespace(init_snapshot=object(), cache_config=a_worker().cache_config)
    assert asked(kv_cache, unlike_vllm) == 7 * GIB
    assert kv_cache.measured is None


def test_an_error_here_does_not_reach_vllm() -> None:
    kv_cache = ours(HINT)
    broken = SimpleNamespace(init_snapshot=None)
    with capture() as lines:
        assert kv_cache.measured_by(broken, lambda: 5) == 5
    assert {line["event"] for line in lines} == {"netloader.driver.error"}
