"""Plots of a run, as SVG files beside the report."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.figures import Figures
from benchmarks.workload import WORKLOADS

OURS, OTHERS = "#1f6fb2", "#b0b0b0"


def plots(figures: Figures, folder: Path) -> list[tuple[str, str]]:
    """Write every plot for which there are figures; name of the file and title of each."""
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    prepare(mpl)
    return [*_rates(figures, folder), *_fan_out(figures, folder), *_fleet(figures, folder)]


def prepare(mpl: Any) -> None:
    """Have matplotlib draw files that differ only where what they show differs."""
    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "netloader", "font.size": 9})


def new(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """Write a figure without what changes from run to run."""
    figure.savefig(path, metadata={"Date": None})
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def _rates(figures: Figures, folder: Path) -> Iterator[tuple[str, str]]:
    """Median rates as bars, the lowest and the highest as a line."""
    rows = groupby(figures.results, key=lambda result: (result.workload, result.memory))
    for (workload, memory), group in rows:
        results = sorted(group, key=lambda result: result.median)
        figure, axes = new(7.5, 0.9 + 0.24 * len(results))
        names = [result.contender for result in results]
        medians = [result.median for result in results]
        colors = [OURS if name.startswith("netloader") else OTHERS for name in names]
        below = [result.median - min(result.rates) for result in results]
        above = [max(result.rates) - result.median for result in results]
        axes.barh(names, medians, color=colors, xerr=(below, above), ecolor="#404040", capsize=2)
        title = f"{WORKLOADS[workload].title}, {memory} memory"
        axes.set_xlabel(f"GiB/s (median; line: lowest to highest). {title}")
        name = f"rates-{workload}-{memory}.svg"
        save(figure, folder / name)
        yield name, title


def _fan_out(figures: Figures, folder: Path) -> Iterator[tuple[str, str]]:
    if not figures.fan_out:
        return
    figure, axes = new(6.5, 3.2)
    for shape, color in (("star", OTHERS), ("relay", OURS)):
        rows = [row for row in figures.fan_out if row.shape == shape]
        counts = [row.clients for row in rows]
        axes.plot(counts, [r.seconds / rows[0].seconds for r in rows], "o-", color=color)
        axes.annotate(f"{shape}, measured", (counts[-1], rows[-1].seconds / rows[0].seconds))
    checked = [row for row in figures.checked if row.way == "relay"]
    if checked:
        counts = [row.clients for row in checked]
        axes.plot(counts, [row.times_one for row in checked], "--", color="black", lw=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("clients that start together (dashed: simulated relay)")
    axes.set_ylabel("time of all, x the time of one")
    save(figure, folder / "fan-out.svg")
    yield "fan-out.svg", "Clients that start together, measured"


def _fleet(figures: Figures, folder: Path) -> Iterator[tuple[str, str]]:
    if not figures.simulated:
        return
    figure, axes = new(6.5, 3.6)
    for way in dict.fromkeys(row.way for row in figures.simulated):
        rows = [row for row in figures.simulated if row.way == way]
        axes.plot([row.clients for row in rows], [row.times_one for row in rows], "o-", label=way)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("instances that start together (simulated)")
    axes.set_ylabel("time of all, x the time of one")
    axes.legend(frameon=False)
    save(figure, folder / "fleet.svg")
    yield "fleet.svg", "Fleets, simulated"
