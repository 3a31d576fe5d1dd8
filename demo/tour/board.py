"""Draw the dashboard's panels with the answers of a Prometheus, each by its own queries.

`python -m demo.tour.board http://HOST:PORT OUT.png [SECONDS]`: not by Grafana. What is drawn is
what the queries of dashboard.json return for the last SECONDS.
"""

import json
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Final

from demo.paths import CACHE, CHECKOUT
from demo.servers import DIRECT, DemoError

BOARD: Final = CHECKOUT / "docs" / "operate" / "prometheus" / "dashboard.json"
STEPS: Final = 240
RATE_S: Final = 10
"""Grafana has four scrapes at least in `$__rate_interval`."""
COLUMNS: Final = 24
GAP_S: Final = 15.0
MOST_LINES: Final = 10


def ask(url: str, path: str, **arguments: object) -> Any:
    """The data of an answer of Prometheus."""
    query = urllib.parse.urlencode(arguments)
    with DIRECT.open(f"{url}/api/v1/{path}?{query}", timeout=60.0) as answer:
        return json.load(answer)["data"]


def draw(url: str, target: Path, seconds: float) -> list[str]:
    """Write the picture; returns the queries that had no answer."""
    sys.path.append(str(CACHE / "bench"))
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise DemoError("matplotlib is missing; see requirements/bench.txt") from error
    mpl.use("agg")
    from matplotlib.figure import Figure

    panels = json.loads(BOARD.read_text(encoding="utf-8"))["panels"]
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure: Any = Figure(figsize=(18, 0.46 * bottom), layout="constrained")
    grid = figure.add_gridspec(bottom, COLUMNS)
    end = time.time()
    empty: list[str] = []
    for panel in panels:
        at = panel["gridPos"]
        place = grid[at["y"] : at["y"] + at["h"], at["x"] : at["x"] + at["w"]]
        axes = figure.add_subplot(place)
        axes.set_title(panel["title"], fontsize=10, loc="left")
        lines: list[tuple[str, list[tuple[float, float]]]] = []
        for target_ in panel["targets"]:
            found = _answer(url, target_, end, seconds)
            lines += found
            if not found:
                empty.append(f"{panel['title']}: {target_['expr']}")
        (_plot if panel["type"] == "timeseries" else _table)(axes, lines, panel)
    figure.savefig(target, dpi=75)
    return empty


def _answer(
    url: str, target: dict[str, str], end: float, seconds: float
) -> list[tuple[str, list[tuple[float, float]]]]:
    expression = target["expr"].replace("$instance", ".*")
    expression = expression.replace("$__rate_interval", f"{RATE_S}s")
    expression = expression.replace("$__range", f"{seconds:.0f}s")
    given = {"query": expression, "start": end - seconds, "end": end, "step": seconds / STEPS}
    found = []
    for one in ask(url, "query_range", **given)["result"]:
        labels = one["metric"]
        name = target.get("legendFormat") or ", ".join(
            f"{key}={value}" for key, value in labels.items() if key not in ("__name__", "job")
        )
        for key, value in labels.items():
            name = name.replace("{{" + key + "}}", value)
        points = [(float(at) - end, float(value)) for at, value in one["values"]]
        found.append((name, points))
    return found


def _plot(axes: Any, lines: Any, panel: Any) -> None:
    scale = {"Bps": 1e6, "bytes": 1e6, "decbytes": 1e6}
    unit = panel["fieldConfig"]["defaults"].get("unit", "")
    shown = sorted(lines, key=lambda line: -max(value for _, value in line[1]))
    for name, points in shown[:MOST_LINES]:
        at: list[float] = []
        values: list[float] = []
        for moment, value in points:
            if at and moment - at[-1] > GAP_S:
                at.append(moment)
                values.append(float("nan"))  # nothing was scraped meanwhile
            at.append(moment)
            values.append(value / scale.get(unit, 1.0))
        axes.plot(at, values, label=name, linewidth=1.3, drawstyle="steps-post")
    if lines:
        axes.legend(fontsize=7, loc="upper left", framealpha=0.7)
    axes.set_ylabel("MB/s" if unit == "Bps" else "MB" if unit in scale else "", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _table(axes: Any, lines: Any, _panel: Any) -> None:
    axes.axis("off")
    for row, (name, points) in enumerate(lines[:MOST_LINES]):
        axes.text(0.02, 0.86 - 0.12 * row, name, fontsize=9, transform=axes.transAxes)
        value = f"{points[-1][1]:g}"
        axes.text(0.9, 0.86 - 0.12 * row, value, fontsize=12, transform=axes.transAxes)


def main() -> int:
    """Draw, and name the queries without an answer."""
    url, target, *seconds = sys.argv[1:]
    for query in draw(url, Path(target), float(seconds[0]) if seconds else 3600.0):
        print(f"no data: {query}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
