"""What ran, as tables: a row for a scenario, a column for a release, a table for a torch."""

import re
import time
from importlib.metadata import version
from typing import Any

HEAD = """# What ran with the real vllm-ascend

Written by `make test-ascend` and `make test-ascend-pinned`, with `TABLE=file`. The real
vllm-ascend and the real torch_npu, on the simulated CANN runtime of `tests/ascend_sim`;
arithmetic on the host. A server loads its model from files, a client has no weight files, and all
their tensors are compared. Nothing here ran on an NPU.

"""


class Table:
    """Results of scenarios as they come in."""

    def __init__(self) -> None:
        self._cells: dict[str, dict[str, str]] = {}
        self._seconds: dict[tuple[str, str], float] = {}
        self._begun = time.monotonic()
        self.releases: list[str] = []

    def note(self, scenario: str, release: str, report: Any) -> None:
        """Take in one phase of a scenario: set-up, the call, or tear-down."""
        if release not in self.releases:
            self.releases.append(release)
        row = self._cells.setdefault(scenario, {})
        at = (scenario, release)
        if report.when == "call":
            self._seconds[at] = report.duration
        if report.failed or (report.when == "call" and release not in row):
            row[release] = report.outcome
        if report.skipped:
            row[release] = f"skipped: {report.longrepr[2].removeprefix('Skipped: ')}"
        if report.when == "teardown" and row.get(release) == "passed":
            seen = [str(text) for name, text in report.user_properties if name == "seen"]
            row[release] = f"{'; '.join(['passed', *seen])}; {self._seconds[at]:.1f} s"

    def text(self) -> str:
        """The table in Markdown below a heading with this torch, '' when nothing ran."""
        if not self._cells:
            return ""
        columns = [f"vllm-ascend {release}" for release in self.releases]
        cells = [cell for row in self._cells.values() for cell in row.values()]
        passed = sum(cell.startswith("passed") for cell in cells)
        lines = [
            f"## torch {version('torch')}, torch_npu {version('torch_npu')}\n",
            f"{passed} of {len(cells)} passed, in {time.monotonic() - self._begun:.0f} s.\n",
            " | ".join(["| scenario", *columns]) + " |",
            "| --- " * (len(columns) + 1) + "|",
        ]
        for scenario, row in self._cells.items():
            cells = [row.get(release, "not run") for release in self.releases]
            lines.append(" | ".join([f"| {scenario}", *cells]) + " |")
        return "\n".join(lines) + "\n"


def merged(page: str, table: str) -> str:
    """The page with the table in place of the one that has the same heading, if there is one."""
    _, *tables = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    by_heading = {text.partition("\n")[0]: text.rstrip("\n") + "\n" for text in [*tables, table]}
    return HEAD + "\n".join(by_heading[heading] for heading in sorted(by_heading))
