"""The phases of a start, read from its log, and the report of a run that is not over."""

import json
import time
from pathlib import Path

from benchmarks.start.instance import Start
from benchmarks.start.phases import API, TOKEN, Phases
from benchmarks.start.report import Group, Results, write
from benchmarks.start.ways import COLD, FILL, WARM, WEIGHTS

LOG = (
    "INFO non-default args: {}\nINFO Resolved architecture: LlamaForCausalLM\n",
    "INFO Initializing a V1 LLM engine (v0.32.0)\n",
    "INFO Starting to load model /models/a...\nINFO Took 3 hints. [netloader.session.closed]\n",
    "INFO Initializing model took 0.2 seconds\n",
    "INFO Loaded 269 MB [netloader.session.closed]\nINFO Using LBHNC KV cache layout.\n",
    "INFO init engine (profile, create kv cache, warmup model) took 0.09 s\n",
)


def test_phases_end_when_the_log_says_so_and_add_up_to_the_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("$ vllm serve\n")
    began = time.monotonic()
    phases = Phases(log, began)
    for part in LOG:
        half = len(part) // 2  # a line that is being written
        for text in (part[:half], part[half:]):
            with log.open("a") as file:
                file.write(text)
            phases.look()
    phases.end(API)
    phases.end(TOKEN)
    whole = time.monotonic() - began

    found = phases.seconds()

    assert [*found] == [
        *("imports, API server", "inspection", "imports, engine core", "imports, worker"),
        *("build", "weights", "post-processing", "KV cache, warm-up", API, TOKEN),
    ]
    assert 0 < sum(found.values()) <= whole


def test_a_phase_that_a_start_does_not_have_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(LOG[:4]) + "INFO Using LBHNC KV cache layout.\n")
    phases = Phases(log, time.monotonic())
    phases.look()
    assert "weights" not in phases.seconds()
    assert [*phases.seconds()][-2:] == ["build", "post-processing"]


def test_a_report_is_whole_after_each_start(tmp_path: Path) -> None:
    group = Group("tiny", 1 << 20, "eager")
    results = Results({"date": "today"}, "", [group])
    group.add(COLD, Start({"weights": 30.0}, 30.0))
    write(results, tmp_path)
    assert "| default loader, cold | 30.00 | 1.00 |  |" in (tmp_path / "index.md").read_text()

    for seconds in (21.0, 19.0, 20.0):
        group.add(WARM, Start({"weights": seconds}, seconds))
    group.add(WEIGHTS, Start({"build": 1.0, "weights": 21.0}, 22.0))
    group.add(FILL, Start({"receive": 0.4, "write": 0.1}, 0.5))
    group.failed.append("the standby did not start\nand its log")
    write(results, tmp_path)

    text = (tmp_path / "index.md").read_text()
    assert "| default loader, warm | 20.00 (21.00, 19.00, 20.00) | 0.67 | 1.00 |" in text
    assert "| standby, filled | 0.50 | 0.02 | 0.03 | receive 0.40, write 0.10 |" in text
    assert "Left out: the standby did not start." in text
    (told,) = json.loads((tmp_path / "results.json").read_text())["groups"]
    assert len(told["starts"][WARM]) == 3
