"""`python -m benchmarks`: measure, and write docs/benchmarks. `make bench` is the start.

`--only` measures some parts anew, and keeps what the last run found of the others. `--quick`
measures a few contenders with one workload and prints them; it writes no report unless `--into`
names a folder. `--report` writes the report again from the results of the last run.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import fan_out, fleet
from benchmarks.beside import measured
from benchmarks.contenders import contenders, is_quick
from benchmarks.contest import Result, compete
from benchmarks.engines import engine_loads
from benchmarks.facts import LOAD, disturbance, facts
from benchmarks.figures import Figures, load, save
from benchmarks.goals import goals
from benchmarks.handshake import shake_hands
from benchmarks.huge import huge_pages
from benchmarks.rails import rails
from benchmarks.report import FOLDER, RESULTS, write
from benchmarks.target import Memory
from benchmarks.workload import LARGE, SMALL, WORKLOADS, Workload

FULL_ROUNDS, SMALL_ROUNDS, QUICK_ROUNDS = 3, 2, 3
BESIDE_ROUNDS, BESIDE_TOKENS, BESIDE_RATE = 2, 80, "200MB"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a run; what it finds goes into the figures."""

    name: str
    measure: Callable[[Figures], None]


def say(what: str) -> None:
    """Show what goes on."""
    print(f"==> {what}", flush=True)


def rates(figures: Figures, workload: Workload, rounds: int) -> None:
    """All contenders on one workload."""
    contest = compete(workload, contenders(), rounds, say)
    others = [result for result in figures.results if result.workload != workload.name]
    figures.results = sorted(others + contest.results, key=_place)
    figures.absent |= contest.absent


def _place(result: Result) -> tuple[int, int]:
    memories = [memory.value for memory in Memory]
    return list(WORKLOADS).index(result.workload), memories.index(result.memory)


def handshakes(figures: Figures) -> None:
    """Tensors by the thousand."""
    figures.handshakes = shake_hands(figures.rounds, say)


def engines(figures: Figures) -> None:
    """Real engines."""
    figures.engines, failed = engine_loads(figures.rounds, say)
    figures.absent |= failed


def huge(figures: Figures) -> None:
    """Huge pages."""
    figures.huge = huge_pages(figures.rounds, say)


def beside(figures: Figures) -> None:
    """What an engine notices."""
    say("an engine that decodes, and what is beside it")
    figures.beside = measured(BESIDE_ROUNDS, BESIDE_RATE, BESIDE_TOKENS)


def links(figures: Figures) -> None:
    """Several links at once."""
    figures.rails = [rails(say)]


def fans(figures: Figures) -> None:
    """Clients on hosts of limited rate, and the simulation of the same."""
    figures.fan_out, failed = fan_out.measured(say)
    figures.absent |= failed
    figures.checked = fleet.as_measured(say)


def fleets(figures: Figures) -> None:
    """Simulated fleets."""
    figures.simulated = fleet.curves(say)


FULL: Sequence[Part] = (
    Part("large", lambda figures: rates(figures, LARGE, figures.rounds)),
    Part("small", lambda figures: rates(figures, SMALL, min(figures.rounds, SMALL_ROUNDS))),
    Part("huge", huge),
    Part("handshake", handshakes),
    Part("rails", links),
    Part("beside", beside),
    Part("engines", engines),
    Part("fan_out", fans),
    Part("fleet", fleets),
)


def run(only: Sequence[str], folder: Path, rounds: int) -> Figures:
    """Measure every part, or those that are named, and write the report after each.

    A part that fails is named in the report.
    """
    figures = Figures(facts(), disturbance(), rounds)
    if only and (folder / RESULTS).exists():
        figures = replace(load(folder / RESULTS), facts=facts(), warning=disturbance())
    if figures.warning:
        say(f"warning: {figures.warning}")
    for part in FULL:
        if only and part.name not in only:
            if part.name not in figures.parts:
                figures.skipped[part.name] = "left out of this run"
            continue
        began, now = time.monotonic(), facts()
        figures.skipped.pop(part.name, None)
        try:
            part.measure(figures)
        except Exception as error:  # noqa: BLE001 - the other parts go on
            figures.skipped[part.name] = f"{type(error).__name__}: {error}"[:300]
            say(f"{part.name} failed: {figures.skipped[part.name]}")
        took = time.monotonic() - began
        figures.parts[part.name] = f"{now['date']}, load average {now[LOAD]}, {took:.0f} s"
        keep(figures, folder)
    return figures


def keep(figures: Figures, folder: Path) -> None:
    """Write results and report."""
    folder.mkdir(parents=True, exist_ok=True)
    save(figures, folder / RESULTS)
    write(figures, folder)
    say(f"the report is in {folder}")


def run_quick() -> Figures:
    """Measure a few contenders, large tensors only."""
    figures = Figures(facts(), disturbance(), QUICK_ROUNDS)
    if figures.warning:
        say(f"warning: {figures.warning}")
    chosen = [contender for contender in contenders() if is_quick(contender)]
    contest = compete(LARGE, chosen, figures.rounds, say)
    figures.results, figures.absent = contest.results, contest.absent
    return figures


def show(figures: Figures) -> None:
    """Print the rates, and the goals that were measured."""
    print(", ".join(f"{name} {value}" for name, value in figures.facts.items()))
    for result in figures.results:
        low, high = min(result.rates), max(result.rates)
        print(
            f"{WORKLOADS[result.workload].title:<24} {result.memory:<8} {result.contender:<32}"
            f"{result.median:>7.2f} GiB/s ({low:.2f} to {high:.2f})"
        )
    for goal in goals(figures):
        if goal.figure:
            print(f"{goal.what}: {goal.figure}, {goal.wanted}: {goal.verdict}")
    for name, why in figures.absent.items():
        print(f"not measured: {name}: {why}")


def main() -> int:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few contenders, three minutes")
    parser.add_argument("--only", nargs="*", default=[], choices=[part.name for part in FULL])
    parser.add_argument("--report", action="store_true", help="write the report again")
    parser.add_argument("--rounds", type=int, default=FULL_ROUNDS, help="that are counted")
    parser.add_argument("--into", type=Path, help="folder of the report")
    wanted = parser.parse_args()
    folder: Path = wanted.into or FOLDER
    if wanted.report:
        write(load(folder / RESULTS), folder)
        return 0
    figures = run_quick() if wanted.quick else run(wanted.only, folder, wanted.rounds)
    show(figures)
    if wanted.quick and wanted.into:
        keep(figures, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
