"""The phases of every start as bars, and of one start by the processes that run them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.plots import new, prepare, save
from benchmarks.start.instance import Start
from benchmarks.start.phases import API, TOKEN

COLORS: Final = {
    "imports, API server": "#b8c4cf",
    "inspection": "#dfe5ea",
    "imports, engine core": "#9aa9b7",
    "imports, worker": "#7d8e9e",
    "build": "#e0b64b",
    "weights": "#1f6fb2",
    "post-processing": "#6aa9dc",
    "compile": "#c26a4a",
    "KV cache, warm-up": "#e3a587",
    API: "#cfcfcf",
    TOKEN: "#2f7d4f",
    "receive": "#1f6fb2",
    "write": "#6aa9dc",
    "offer, API": "#cfcfcf",
}
LANES: Final = {
    "API server": ("imports, API server", "inspection", API, TOKEN),
    "engine core": ("imports, engine core", "KV cache, warm-up"),
    "worker": ("imports, worker", "build", "weights", "post-processing", "compile"),
}
"""Which process does what. All others wait meanwhile."""
NARROWEST: Final = 0.04
"""Share of the panel that a bar needs to have its seconds written in it."""
CENTERED: Final = {"ha": "center", "va": "center", "fontsize": 7}

Rows = Mapping[str, Mapping[str, Start]]
"""The starts of each panel by their ways."""


def draw(rows: Rows, folder: Path) -> Iterator[str]:
    """Write the plot, and yield what shows it; nothing without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return
    if not rows:
        return
    prepare(mpl)
    from matplotlib.figure import Figure

    heights = [len(starts) + 0.7 for starts in rows.values()]
    figure: Any = Figure(figsize=(9.0, 1.4 + 0.34 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (title, starts) in zip(panels, rows.items(), strict=True):
        _panel(axes, title, starts)
    panels[-1].set_xlabel("seconds from the start of the process, or from the request to fill")
    used = {name for starts in rows.values() for start in starts.values() for name in start.phases}
    shown: dict[str, str] = {}
    for name, color in COLORS.items():
        if name in used and color not in shown.values():
            shown[name] = color
    figure.legend(_patches(shown), [*shown], loc="outside upper center", ncols=5, frameon=False)
    save(figure, folder / "phases.svg")
    yield "![Phases of each start](phases.svg)\n"


def draw_lanes(start: Start, folder: Path) -> Iterator[str]:
    """Write the plot of one start by its processes, and yield what shows it."""
    try:
        import matplotlib as mpl
    except ImportError:
        return
    prepare(mpl)
    figure, axes = new(9.0, 2.2)
    left = 0.0
    for name, spent in start.phases.items():
        lane = next(lane for lane, names in LANES.items() if name in names)
        axes.barh(lane, spent, left=left, color=COLORS[name], height=0.6)
        if spent > NARROWEST * start.seconds:
            label = f"{name.removesuffix(f', {lane}')}\n{spent:.1f}"
            axes.text(left + spent / 2, lane, label, **CENTERED)
        left += spent
    axes.set_ylim(2.6, -0.6)
    axes.set_xlabel("seconds from the start of the process")
    save(figure, folder / "processes.svg")
    yield "![Processes of one start](processes.svg)\n"


def _panel(axes: Any, title: str, starts: Mapping[str, Start]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
    longest = max(start.seconds for start in starts.values())
    for way, start in starts.items():
        left = 0.0
        for name, spent in start.phases.items():
            axes.barh(way, spent, left=left, color=COLORS[name], height=0.7)
            if spent > NARROWEST * longest:
                axes.text(left + spent / 2, way, f"{spent:.1f}", **CENTERED)
            left += spent
        axes.text(left + 0.01 * longest, way, f"{start.seconds:.1f} s", va="center", fontsize=8)
    axes.set_xlim(0, longest * 1.1)
    axes.invert_yaxis()


def _patches(colors: Mapping[str, str]) -> list[Any]:
    from matplotlib.patches import Patch

    return [Patch(color=color) for color in colors.values()]
