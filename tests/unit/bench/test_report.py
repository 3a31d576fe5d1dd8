"""A run of the benchmarks on a tiny model, and the report of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.contenders import contenders
from benchmarks.contenders.copies import Memcpy, ReadFromProcess
from benchmarks.contenders.own import Netloader, algorithms
from benchmarks.contenders.sockets import PlainSocket
from benchmarks.contest import Result, compete
from benchmarks.figures import (
    Beside,
    EngineLoad,
    FanOut,
    Figures,
    HugePages,
    Rails,
    Simulated,
    load,
    save,
)
from benchmarks.goals import goals
from benchmarks.handshake import Handshake
from benchmarks.huge import COPY, WAY
from benchmarks.report import write
from benchmarks.sender import Sender
from benchmarks.target import Target
from benchmarks.workload import TINY


class Absent:
    name: str = "absent"
    kind: str = "network"
    workloads: tuple[str, ...] = ("tiny",)

    def obstacle(self) -> str:
        return "not installed"

    def prepare(self, sender: Sender, target: Target) -> Callable[[], object]:
        raise AssertionError("never asked")


class Liar(Absent):
    """It is fast, because it brings nothing."""

    name: str = "liar"

    def obstacle(self) -> str:
        return ""

    def prepare(self, sender: Sender, target: Target) -> Callable[[], object]:
        target.model()
        return lambda: None


def test_each_contender_is_measured_in_both_kinds_of_memory_or_named_as_absent() -> None:
    own = Netloader("tcp", algorithms()[0])
    taking_part = (Memcpy(), ReadFromProcess(), PlainSocket(), own)

    contest = compete(TINY, (*taking_part, Absent(), Liar()), 2, lambda _: None)

    measured = {(result.contender, result.memory) for result in contest.results}
    usual = {each.name for each in taking_part} - {"process_vm_readv"}  # needs a permission
    assert measured >= {(name, memory) for name in usual for memory in ("fresh", "touched")}
    assert all(len(result.rates) == 2 for result in contest.results)
    assert contest.absent.pop("absent") == "not installed"
    assert "other bytes arrived" in contest.absent.pop("liar (tiny)")


def test_contenders_have_names_of_their_own() -> None:
    names = [contender.name for contender in contenders()]

    assert len(set(names)) == len(names)


def figures() -> Figures:
    def rates(contender: str, rate: float, workload: str = "large") -> list[Result]:
        kinds = ("fresh", "touched")
        return [Result(workload, m, contender, "network", [rate, rate * 2]) for m in kinds]

    found = Figures({"processor": "of a test"}, "the machine is not quiet", rounds=2)
    found.results = [
        *rates("plain socket", 4.0),
        *rates("plain socket, reno", 5.0),
        *rates("netloader tcp, blake3", 4.5),
        *rates("bare gloo", 4.0),
        *rates("netloader gloo, blake3", 2.0),
        *rates("netloader tcp, blake3", 1.0, "small"),
    ]
    found.absent = {"NIXL (UCX)": "the package nixl is not installed"}
    found.handshakes = [Handshake(300, [1.0, 1.2], [1.5, 1.9], [3.0, 4.0])]
    found.huge = [HugePages(way, [rate], 1.0) for way, rate in ((COPY, 10.0), (WAY, 7.0))]
    found.rails = [Rails(20.0, 39.0)]
    found.beside = [
        Beside(work, 10.0, p99, 0.2)
        for work, p99 in (("idle", 12.0), ("tcp", 24.0), ("tcp, 200MB", 13.0), ("copy", 18.0))
    ]
    found.engines = [EngineLoad("ordinary, warm", [0.4]), EngineLoad("netloader tcp", [0.5])]
    found.fan_out = [
        FanOut(count, shape, seconds, 1.0, 1.0, 1.0)
        for shape, times in (("star", (3.0, 24.0)), ("relay", (3.0, 3.6)))
        for count, seconds in zip((1, 8), times, strict=True)
    ]
    found.checked = [Simulated(8, "relay", 1.25, 1.0, 0.1)]
    found.simulated = [Simulated(n, "relay", 1 + n / 256, 1.0, 0.1) for n in (1, 1000)]
    found.skipped = {"fan_out": "no network namespaces here"}
    return found


def test_each_goal_is_reached_or_missed_or_said_to_be_not_measured() -> None:
    verdicts = {goal.what: goal for goal in goals(figures())}

    socket = verdicts["tcp, touched memory, 226 tensors, blake3: x plain socket (touched)"]
    assert (socket.figure, socket.verdict) == ("0.90", "reached"), "beside the best plain socket"
    assert verdicts["gloo, 226 tensors, touched memory: x bare gloo"].verdict == "missed"
    capped = verdicts["p99 of a real engine's step, tcp, 200MB beside it: x idle"]
    assert (capped.figure, capped.verdict) == ("1.08", "reached")
    assert verdicts["p99 of a real engine's step, tcp beside it: x idle"].verdict == "missed"
    pages = "same host, touched memory, huge pages on both sides, xxh3_128: x memcpy (1 thread)"
    assert (verdicts[pages].figure, verdicts[pages].verdict) == ("0.70", "reached")
    assert verdicts["two rails: x the sum"].figure == "0.97"
    eight = verdicts["8 clients at a source of limited rate, relay: x the time of one"]
    assert (eight.figure, eight.verdict) == ("1.20", "reached")
    clear = ("reached", "missed", "for comparison")
    others = [g.verdict for g in verdicts.values() if g.verdict not in clear]
    assert others
    assert all(verdict.startswith("not measured: ") for verdict in others)


def test_the_report_of_saved_figures_names_all_that_was_found(tmp_path: Path) -> None:
    save(figures(), tmp_path / "results.json")

    write(load(tmp_path / "results.json"), tmp_path)

    text = (tmp_path / "index.md").read_text()
    for part in ("of a test", "the machine is not quiet", "netloader gloo, blake3", "1.70 (1.50"):
        assert part in text
    assert "NIXL (UCX): the package nixl is not installed" in text
    assert "| 8 | relay | 3.6 | 1.20 | 1.25 |" in text
    assert json.loads((tmp_path / "results.json").read_text())["rounds"] == 2


def test_the_report_has_plots_where_matplotlib_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    write(figures(), tmp_path)

    text = (tmp_path / "index.md").read_text()
    for plot in ("rates-large-fresh.svg", "fan-out.svg", "fleet.svg"):
        assert (tmp_path / plot).stat().st_size > 1000
        assert f"({plot})" in text
