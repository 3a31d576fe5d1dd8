"""`python -m benchmarks.start`: start real servers in several ways, write docs/benchmarks/start.

Every start is a `vllm serve` of its own, from the start of its process to the first token by HTTP.
One source serves beside all starts of a model. The report is written anew after each of them.
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.facts import disturbance, facts
from benchmarks.start.instance import COMPILED, EAGER, Mode
from benchmarks.start.models import Model, models
from benchmarks.start.report import FOLDER, Group, Results
from benchmarks.start.report import write as write_report
from benchmarks.start.ways import Ways
from demo.servers import DemoError


def measure(results: Results, model: Model, mode: Mode, rounds: int, to: Path) -> None:
    """Start one model in every way, `rounds` times in turns."""
    group = Group(model.name, model.nbytes, mode.name)
    results.groups.append(group)
    with tempfile.TemporaryDirectory(prefix="start-") as folder:
        ways = Ways(model, Path(folder), mode)
        say(f"{group.title}: a source")
        with ways.source():
            for start in (way for _ in range(rounds) for way in ways):
                try:
                    for name, went in start():
                        say(f"{group.title}: {name}, {went.seconds:.2f} s")
                        group.add(name, went)
                except DemoError as error:
                    group.failed.append(str(error))
                    say(f"{group.title}: {error}")
                write_report(results, to)


def say(what: str) -> None:
    """Show what goes on."""
    print(f"==> {time.strftime('%H:%M:%S')} {what}", flush=True)


def main() -> None:
    """Measure what the command line says."""
    small, large = models()
    every = {
        "small-eager": (small, EAGER),
        "large-eager": (large, EAGER),
        "small-compiled": (small, COMPILED),
        "large-compiled": (large, COMPILED),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how often each way is taken (1)")
    parser.add_argument(
        "--only", choices=[*every], nargs="+", default=[*every][:3], help="the models and modes"
    )
    parser.add_argument("--to", type=Path, default=FOLDER, help="the folder of the report")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # no server stays
    results = Results(dict(facts()), disturbance())
    for name in given.only:
        measure(results, *every[name], given.rounds, given.to)


if __name__ == "__main__":
    main()
