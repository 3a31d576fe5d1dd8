"""How many bytes a rank has for its KV cache: measured by vLLM, or taken over from a source.

vLLM asks its worker once, before it makes the cache. With a size that is given, a worker measures
nothing (on a device it still runs the model once, which compiles it). A size is taken over only
under the conditions under which it was measured, where as much memory is left, and MARGIN less than
that.
"""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import psutil
import torch

from netloader.files.hints import KvSize
from netloader.fsm.identity import Identity
from netloader.log import emit, get_logger
from netloader.vllm_plugin.log_base import LOG_BASE
from netloader.vllm_plugin.serve.harmless import harmless

MARGIN: Final = 0.02
"""The part of a size that is left out: two measurements differ by less."""


class KvCache:
    """The size of one worker. For the worker's thread; `measured` may be read by others."""

    def __init__(self) -> None:
        self.conditions: Mapping[str, str] = {}
        """Those of this rank; empty where nothing is to be taken over, or told."""
        self.hint: KvSize | None = None
        """What a source has measured."""
        self.measured: KvSize | None = None
        """What was measured, here or where the hint is from; None where the operator decides."""
        self.before: list[Callable[[], object]] = []
        """What is to be done before vLLM measures: until then it changes its configuration, and
        then it compiles."""
        self._memory: _Memory | None = None
        self._logger = get_logger("client", LOG_BASE)

    def measured_by(self, worker: Any, measure: Callable[[], int]) -> int:
        """What vLLM's own method returns; errors of netloader do not reach it."""
        while self.before:
            with harmless():
                self.before.pop()()
        with harmless():
            self._begin(worker)
        nbytes = measure()
        with harmless():
            self._end(worker, nbytes)
        return nbytes

    def _begin(self, worker: Any) -> None:
        """Have vLLM take the source's size, if it fits and the operator gave none."""
        self._memory = self.measured = None
        if not self.conditions:
            return
        self._memory, hint = _Memory.of(worker), self.hint
        if hint is None or worker.cache_config.kv_cache_memory_bytes is not None:
            return
        if problem := self._flaw(hint, self._memory):
            emit(self._logger, "netloader.caches.refused", {"netloader.detail": problem})
            return
        self.measured = hint
        worker.cache_config.kv_cache_memory_bytes = taken = int(hint.nbytes * (1 - MARGIN))
        fields = {"netloader.detail": f"{taken} bytes for the KV cache, not measured here"}
        emit(self._logger, "netloader.caches.taken", fields)

    def _flaw(self, hint: KvSize, memory: "_Memory") -> str:
        """Why a size is not taken; empty if it is."""
        mine = Identity(memory.conditions(self.conditions))
        if found := mine.differences(Identity(hint.of)):
            return f"the size of the KV cache is measured anew: {found[0]}"
        missing = max(hint.free_bytes - memory.free, 0) + max(memory.taken - hint.taken_bytes, 0)
        if missing > hint.nbytes * MARGIN:
            here = f"here {memory.free} bytes were free and {memory.taken} are taken"
            there = f"at the source {hint.free_bytes} and {hint.taken_bytes}"
            return f"the size of the KV cache is measured anew: {here}, {there}"
        return ""

    def _end(self, worker: Any, nbytes: int) -> None:
        """Note what vLLM has found, for others."""
        memory, given = self._memory, worker.cache_config.kv_cache_memory_bytes
        if memory is not None and given is None and nbytes > 0:
            of = memory.conditions(self.conditions)
            self.measured = KvSize(int(nbytes), memory.free, memory.taken, of)


@dataclass(frozen=True, slots=True)
class _Memory:
    """Bytes of a worker's device: all, free before the engine took any, and taken since then.

    On a CPU those of the host, free now; nothing is known to be taken.
    """

    total: int
    free: int
    taken: int

    @classmethod
    def of(cls, worker: Any) -> Self:
        """As vLLM has seen it when the worker began, and sees it now.

        What is not in use is given back first, as vLLM does before it measures. Not every platform
        of vLLM answers `get_device_total_memory`; a worker that measures has a snapshot.
        """
        before = getattr(worker, "init_snapshot", None)
        if before is None:
            host = psutil.virtual_memory()
            return cls(host.total, host.available, 0)
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        now = type(before)(device=before.device_)
        taken = max(before.free_memory - now.free_memory, 0)
        return cls(int(before.total_memory), int(before.free_memory), int(taken))

    def conditions(self, others: Mapping[str, str]) -> dict[str, str]:
        """Those of a load, and that its device is as large."""
        return {**others, "device_bytes": str(self.total)}
