"""Feeds prometheus_client with log records. One recorder for a process, as one log.

With PROMETHEUS_MULTIPROC_DIR in the environment, prometheus_client keeps the values in files that
any process may add up: then the series of vLLM's workers are on the page of its API server.
"""

import threading
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

from netloader.log import SINKS
from netloader.metrics import catalogue as c
from netloader.metrics.catalogue import CATALOGUE, Kind
from netloader.metrics.records import Change, History, Update, updates

NEEDED: Final = "prometheus_client"


def available() -> bool:
    """Whether prometheus_client is installed."""
    return find_spec(NEEDED) is not None


@cache
def record() -> None:
    """Turn the records of this process into series of the default registry, from now on.

    Does nothing without prometheus_client, and nothing the second time.
    """
    if available():
        from prometheus_client import REGISTRY

        SINKS.append(Recorder(REGISTRY))


class Recorder:
    """A sink of log records; thread-safe. `registry` is one of prometheus_client."""

    def __init__(self, registry: Any) -> None:
        self._lock = threading.Lock()
        self._history = History()
        self._series = {each.name: _made(each, registry) for each in CATALOGUE}
        self._alone: dict[str, tuple[str, ...]] = {}

    def __call__(self, fields: Mapping[str, object]) -> None:
        """Take one record."""
        with self._lock:
            for update in updates(fields, self._history):
                self._apply(update)

    def _apply(self, update: Update) -> None:
        family = self._series[update.series]
        one = family.labels(*update.labels) if update.labels else family
        match update.change:
            case Change.ADD:
                one.inc(update.value)
            case Change.SET:
                one.set(update.value)
            case Change.OBSERVE:
                one.observe(update.value)
            case Change.ONLY:
                before = self._alone.get(update.series)
                if before is not None and before != update.labels:
                    family.labels(*before).set(0.0)
                self._alone[update.series] = update.labels
                one.set(update.value)


def _made(each: c.Series, registry: Any) -> Any:
    from prometheus_client import Counter, Gauge, Histogram

    match each.kind:
        case Kind.COUNTER:
            return Counter(each.name, each.meaning, each.labels, registry=registry)
        case Kind.GAUGE:
            return Gauge(
                each.name,
                each.meaning,
                each.labels,
                registry=registry,
                multiprocess_mode="livesum",  # over the processes that are alive
            )
        case Kind.HISTOGRAM:
            return Histogram(
                each.name, each.meaning, each.labels, registry=registry, buckets=c.PHASE_BUCKETS
            )
