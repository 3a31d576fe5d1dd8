"""How many bytes a rank has for its KV cache: measured by vLLM, or taken over from a source.

vLLM asks its worker once, before it makes the cache. With a size that is given, a worker measures
nothing (on a device it still runs the model once, which compiles it). A size is taken over only
under the conditions under which it was measured, and MARGIN less than that.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import psutil

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
        self._free = 0
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
        self._free = _free_bytes(worker)
        hint, self.measured = self.hint, None
        if hint is None or worker.cache_config.kv_cache_memory_bytes is not None:
            return
        if problem := self._flaw(hint):
            emit(self._logger, "netloader.caches.refused", {"netloader.detail": problem})
            return
        self.measured = hint
        worker.cache_config.kv_cache_memory_bytes = taken = int(hint.nbytes * (1 - MARGIN))
        fields = {"netloader.detail": f"{taken} bytes for the KV cache, not measured here"}
        emit(self._logger, "netloader.caches.taken", fields)

    def _flaw(self, hint: KvSize) -> str:
        """Why a size is not taken; empty if it is."""
        if found := Identity(self.conditions).differences(Identity(hint.of)):
            return f"the size of the KV cache is measured anew: {found[0]}"
        if self._free < hint.free_bytes - hint.nbytes * MARGIN:
            less = f"{self._free} bytes are free here, {hint.free_bytes} were free at the source"
            return f"the size of the KV cache is measured anew: {less}"
        return ""

    def _end(self, worker: Any, nbytes: int) -> None:
        """Note what vLLM has found, for others."""
        if self.conditions and worker.cache_config.kv_cache_memory_bytes is None and nbytes > 0:
            self.measured = KvSize(int(nbytes), self._free, self.conditions)


def _free_bytes(worker: Any) -> int:
    """Of the device before the engine took any, as vLLM saw it; on a CPU, of the host now."""
    snapshot = getattr(worker, "init_snapshot", None)
    free = getattr(snapshot, "free_memory", None)
    return int(psutil.virtual_memory().available if free is None else free)
