"""What a run found, as JSON: written by the run, read by the report."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contest import Result
from benchmarks.handshake import Handshake


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Seconds of the weights phase of a real engine, one for each start."""

    way: str
    seconds: list[float]


@dataclass(frozen=True, slots=True)
class Beside:
    """Steps of an engine that decodes while something else is at work: see `beside`."""

    work: str
    p50_ms: float
    p99_ms: float
    gigabytes_per_s: float
    """What the work moved; 0 if it moves nothing."""


@dataclass(frozen=True, slots=True)
class HugePages:
    """GiB/s within one host where the memory of both sides is in huge pages: see `huge`."""

    way: str
    rates: list[float]
    huge_share: float
    """Of the memory that was received into, the share that the kernel kept in huge pages."""


@dataclass(frozen=True, slots=True)
class Rails:
    """MB/s over one of two links of limited rate, and over both: see `rails`."""

    one: float
    both: float


@dataclass(frozen=True, slots=True)
class FanOut:
    """Clients that started together on hosts of limited rate."""

    clients: int
    shape: str
    """`star` or `relay`."""
    seconds: float
    """Until all were done."""
    sent_by_source: float
    """Models that left the first server."""
    most_sent_by_a_client: float
    """Models that left the client that sent most."""
    mean_per_link: float
    """Models that left a host, on average of all that sent any."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """The same in a simulation: see `fleet`."""

    clients: int
    way: str
    times_one: float
    """Time until all are done, in times of the time of one client."""
    sent_by_source: float
    took_s: float
    """What the simulation itself took."""


@dataclass
class Figures:
    """Everything that one run found."""

    facts: Mapping[str, str]
    warning: str
    rounds: int
    results: list[Result] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    handshakes: list[Handshake] = field(default_factory=list)
    engines: list[EngineLoad] = field(default_factory=list)
    huge: list[HugePages] = field(default_factory=list)
    rails: list[Rails] = field(default_factory=list)
    beside: list[Beside] = field(default_factory=list)
    fan_out: list[FanOut] = field(default_factory=list)
    simulated: list[Simulated] = field(default_factory=list)
    checked: list[Simulated] = field(default_factory=list)
    """The simulation of what was measured, for comparison."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Why a part was not measured."""
    parts: dict[str, str] = field(default_factory=dict)
    """When each part was measured, and how busy the machine was then."""

    def median(self, workload: str, memory: str, contender: str) -> float | None:
        """GiB/s, or None when it was not measured."""
        for result in self.results:
            if (result.workload, result.memory, result.contender) == (workload, memory, contender):
                return result.median
        return None

    def best(self, workload: str, memory: str, names: Iterable[str]) -> float | None:
        """The highest median of some contenders."""
        found = (self.median(workload, memory, name) for name in names)
        return max((rate for rate in found if rate is not None), default=None)

    def names(self, beginning: str) -> tuple[str, ...]:
        """Contenders whose names begin so."""
        names = dict.fromkeys(result.contender for result in self.results)
        return tuple(name for name in names if name.startswith(beginning))


def save(figures: Figures, path: Path) -> None:
    """Write them."""
    shown = json.dumps(_rounded(asdict(figures)), indent=1)
    path.write_text(shown + "\n", encoding="utf-8")


def load(path: Path) -> Figures:
    """Read them."""
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kinds: dict[str, Any] = {
        "results": Result,
        "handshakes": Handshake,
        "engines": EngineLoad,
        "huge": HugePages,
        "rails": Rails,
        "beside": Beside,
        "fan_out": FanOut,
        "simulated": Simulated,
        "checked": Simulated,
    }
    made = {name: [kind(**row) for row in raw.get(name, ())] for name, kind in kinds.items()}
    return Figures(**(raw | made))


def _rounded(value: Any) -> Any:
    """The same with four digits of each number."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return value
