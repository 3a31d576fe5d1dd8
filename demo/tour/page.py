"""The page of the docs that a run of the tour writes."""

from collections.abc import Sequence
from pathlib import Path

from demo.tour.situations import Situation

HEAD = """# A tour of what an operator sees

Real vLLM engines (SmolLM2-135M-Instruct on a CPU), a real Redis and a real Prometheus with the
rules of [alerts.yml](prometheus/alerts.yml). `make tour` runs it, writes this page from what it
sees, and fails if anything that the page says is not seen. Addresses and paths are replaced by
names; nothing else is.

Every instance has these settings, with its own ports and certificate. Prometheus scrapes and
evaluates every second here, so alerts fire within seconds; with usual intervals it is a minute or
so.
"""


DRAWN = """## The dashboard

The panels of [dashboard.json](prometheus/dashboard.json), drawn by `demo/tour/board.py` with the
answers of this Prometheus to their own queries; Grafana itself was not run.
"""


class Page:
    """Collects what is seen."""

    def __init__(self) -> None:
        self._parts = [HEAD]

    def settings(self, text: str) -> None:
        """The settings of the first instance."""
        self._parts.append(f"```json\n{text}\n```\n\n## The first instance\n")

    def situation(self, situation: Situation) -> None:
        """Begin with one client."""
        self._parts.append(f"## {situation.title}\n\n{situation.story}\n")

    def view(self, title: str, lines: Sequence[str]) -> None:
        """What is seen in one place."""
        print(f"--- {title}", *lines, sep="\n    ", flush=True)
        text = "\n".join(lines) or "(nothing)"
        self._parts.append(f"{title}:\n\n```text\n{text}\n```\n")

    def meaning(self, text: str) -> None:
        """What it means, and what to do."""
        self._parts.append(f"{text}\n")

    def dashboard(self, empty: Sequence[str]) -> None:
        """The picture of the whole tour."""
        without = "".join(f"* {query}\n" for query in empty)
        note = f"\nQueries that had nothing to show in this run:\n\n{without}" if empty else ""
        self._parts.append(
            f"{DRAWN}\n![The dashboard during the tour](images/dashboard.png)\n{note}"
        )

    def write(self, path: Path) -> None:
        """Write the page."""
        path.write_text("\n".join(self._parts), encoding="utf-8")
