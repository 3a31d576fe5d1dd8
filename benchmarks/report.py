"""The report of a run: docs/benchmarks/index.md, plots and results.json beside it."""

import statistics
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from benchmarks.figures import Figures
from benchmarks.goals import goals
from benchmarks.plots import plots
from benchmarks.workload import WORKLOADS

FOLDER: Final = Path(__file__).parents[1] / "docs" / "benchmarks"
RESULTS: Final = "results.json"

INTRODUCTION: Final = """\
# Benchmarks

Written by `make bench` from [results.json](results.json); do not edit. Both ends are processes of
one machine. Contenders take turns, the first round is not counted, and the figures are medians with
the lowest and the highest round. *Fresh* memory has not been touched since it was allocated: a
client which has just built its model receives into such. *Touched* memory has all its pages.

netloader is timed from the call of `fill` to its return: connection, handshake, digests and goodbye
included. The others are timed while bytes move, and check no digest. Files are read from the disk
of this machine; *cold* files were put out of the page cache before (`posix_fadvise`).
"""


def write(figures: Figures, folder: Path = FOLDER) -> None:
    """Write report and plots."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.svg"):
        stale.unlink()
    drawn = plots(figures, folder)
    blocks = [
        INTRODUCTION,
        *_machine(figures),
        *_goals(figures),
        *_rates(figures),
        *_huge(figures),
        *_handshakes(figures),
        *_engines(figures),
        *_beside(figures),
        *_fan_out(figures),
        *_fleet(figures),
        *_absent(figures),
        *(f"![{title}]({name})\n" for name, title in drawn),
    ]
    (folder / "index.md").write_text("\n".join(blocks), encoding="utf-8")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _machine(figures: Figures) -> Iterator[str]:
    yield "## The machine\n"
    if figures.warning:
        yield f"**Warning: {figures.warning}.**\n"
    parts = {f"part {name}": when for name, when in figures.parts.items()}
    facts = {**figures.facts, "rounds": str(figures.rounds), **parts}
    yield _table(("fact", "value"), [[name, value] for name, value in facts.items()])


def _goals(figures: Figures) -> Iterator[str]:
    yield "## What it should reach\n"
    rows = [[goal.what, goal.wanted, goal.figure, goal.verdict] for goal in goals(figures)]
    yield _table(("what", "wanted", "figure", "verdict"), rows)


def _rates(figures: Figures) -> Iterator[str]:
    for workload, group in groupby(figures.results, key=lambda result: result.workload):
        by_name: dict[str, dict[str, Sequence[float]]] = {}
        for result in group:
            by_name.setdefault(result.contender, {})[result.memory] = result.rates
        yield f"## {WORKLOADS[workload].title}, GiB/s\n"
        rows = [
            [name, *(_spread(rates.get(memory, ())) for memory in ("fresh", "touched"))]
            for name, rates in by_name.items()
        ]
        yield _table(("contender", "fresh memory", "touched memory"), rows)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _handshakes(figures: Figures) -> Iterator[str]:
    if not figures.handshakes:
        return
    yield "## Many tensors, over tcp, milliseconds\n"
    yield (
        "The handshake is counted from the connection to the request for the first bytes, the\n"
        "rest from the call of `fill`, which looks at the module first.\n"
    )
    rows = [
        [
            f"{each.tensors:,}",
            *map(_spread, (each.handshake_ms, each.first_segment_ms, each.done_ms)),
        ]
        for each in figures.handshakes
    ]
    yield _table(("tensors of 1 KiB", "handshake", "first segment verified", "done"), rows)


def _huge(figures: Figures) -> Iterator[str]:
    if not figures.huge:
        return
    yield "## The same host, memory of both sides in huge pages, GiB/s\n"
    rows = [[each.way, _spread(each.rates), f"{each.huge_share:.0%}"] for each in figures.huge]
    yield _table(("way", "touched memory", "of it in huge pages"), rows)


def _beside(figures: Figures) -> Iterator[str]:
    if not figures.beside:
        return
    yield "## The engine beside\n"
    yield (
        "A real engine (SmolLM2, eager, one process) decodes on one core, which it shares with\n"
        "the lanes of its server. The process that loads from it back to back has the other core\n"
        "(`python -m benchmarks.beside`).\n"
    )
    idle = figures.beside[0]
    rows = [
        [
            *(each.work, f"{each.p50_ms:.1f}", f"{each.p99_ms:.1f}"),
            *(f"{each.p50_ms / idle.p50_ms:.2f}", f"{each.p99_ms / idle.p99_ms:.2f}"),
            f"{each.gigabytes_per_s:.2f}" if each.gigabytes_per_s else "",
        ]
        for each in figures.beside
    ]
    head = ("beside it", "p50 of a step, ms", "p99, ms", "p50 x idle", "p99 x idle", "GB/s")
    yield _table(head, rows)


def _engines(figures: Figures) -> Iterator[str]:
    if not figures.engines:
        return
    yield "## The weights phase of a real vLLM engine, 1.7 GiB, seconds\n"
    yield _table(("loader", "seconds"), [[e.way, _spread(e.seconds)] for e in figures.engines])


def _fan_out(figures: Figures) -> Iterator[str]:
    if not figures.fan_out:
        return
    yield "## Clients that start together\n"
    yield (
        "Each is a process on a host (network namespace) of its own that sends 160 Mbit/s at\n"
        "most; the model has 64 MiB. Star: all from one server, which has places for all. Relay:\n"
        "the server and each client have one place, so clients feed each other. Models sent are\n"
        "bytes that left a host, over the bytes of the model.\n"
    )
    simulated = {(row.clients, row.way): row for row in figures.checked}
    one = {row.shape: row.seconds for row in figures.fan_out if row.clients == 1}
    rows = []
    for row in figures.fan_out:
        times = row.seconds / one[row.shape] if row.shape in one else 0.0
        twin = simulated.get((row.clients, row.shape))
        rows.append(
            [
                *(str(row.clients), row.shape, f"{row.seconds:.1f}", f"{times:.2f}"),
                f"{twin.times_one:.2f}" if twin else "",
                *(f"{row.sent_by_source:.2f}", f"{row.most_sent_by_a_client:.2f}"),
                f"{row.mean_per_link:.2f}",
            ]
        )
    head = ("clients", "shape", "seconds", "x one", "x one, simulated", "models the source sent")
    yield _table((*head, "most that a client sent", "mean of the links that sent"), rows)


def _fleet(figures: Figures) -> Iterator[str]:
    if not figures.simulated:
        return
    yield "## Fleets, simulated\n"
    yield (
        "The real machine of a fetch and the real referrals, on hosts of a simulated network\n"
        "(`python -m benchmarks.fleet`).\n"
    )
    rows = [
        [f"{row.clients:,}", row.way, f"{row.times_one:.2f}", f"{row.sent_by_source:.2f}"]
        for row in figures.simulated
    ]
    yield _table(("instances", "way", "x the time of one", "models the source sent"), rows)


def _absent(figures: Figures) -> Iterator[str]:
    if not figures.absent and not figures.skipped:
        return
    yield "## Not measured\n"
    missing = {**figures.skipped, **figures.absent}
    yield "".join(f"* {name}: {why}\n" for name, why in sorted(missing.items()))
