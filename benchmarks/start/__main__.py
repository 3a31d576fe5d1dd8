"""`python -m benchmarks.start`: start real servers in several ways, write docs/benchmarks/start.

Every start is a `vllm serve` of its own, from the start of its process to the first token by HTTP.
The ways take turns. `cold`: the file of the weights was put out of the page cache before.
`standby`: from the request to fill an instance that waits, whose own start is shown beside it.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.facts import disturbance, facts
from benchmarks.page_cache import cool, warm
from benchmarks.start.instance import Instance, Start, netloader, serving
from benchmarks.start.models import Model, models
from benchmarks.start.report import Results, Row, write

COLD, WARM, WEIGHTS, WAITING, FILL = (
    "ordinary loader, cold",
    "ordinary loader, warm",
    "netloader",
    "standby, until it waits",
    "standby, filled",
)
SOURCE_S: Final = 120.0


class Starts:
    """The ways of starting one model; each returns how long its phases took."""

    def __init__(self, model: Model, folder: Path, *, eager: bool) -> None:
        self._model = model
        self._folder = folder
        self._eager = eager

    def ordinary(self, *, cold: bool) -> Start:
        """With vLLM's own loader, from the disk or from the page cache."""
        for path in self._model.full.glob("*.safetensors"):
            (cool if cold else warm)(path)
        with self._serving("ordinary", self._model.full) as instance:
            instance.wait(instance.healthy)
            return instance.start()

    @contextmanager
    def source(self) -> Iterator[str]:
        """A server that serves; where its weights are had."""
        prefix = self._folder / f"source-{len(list(self._folder.iterdir()))}-"
        words = netloader({"OUTPUT_PREFIX": str(prefix)})
        with self._serving("source", self._model.full, *words) as instance:
            instance.wait(instance.healthy)
            yield Path(f"{prefix}0.txt").read_text().strip()

    def received(self, source: str) -> Start:
        """From the weights of a source."""
        words = netloader({"SOURCE": [{"device_id": 0, "sources": [source]}], "FALLBACK": "never"})
        with self._serving("netloader", self._model.bare, *words) as instance:
            instance.wait(instance.healthy)
            return instance.start()

    def standby(self, source: str) -> tuple[Start, Start]:
        """The start of an instance on standby, and from the request to fill it to the token."""
        sources = [{"device_id": 0, "sources": [source]}]
        words = netloader({"STANDBY": True, "SOURCE": sources})
        with self._serving("standby", self._model.bare, *words) as instance:
            instance.wait(instance.waits)
            waiting = instance.now()
            return Start({"until it waits": waiting}, waiting), instance.filled()

    def _serving(self, name: str, folder: Path, *words: str) -> AbstractContextManager[Instance]:
        return serving(name, folder, words, self._folder, eager=self._eager)


def measured(model: Model, rounds: int, *, eager: bool) -> list[Row]:
    """Every way of starting a model, in turns."""
    found: dict[str, list[Start]] = {}
    with tempfile.TemporaryDirectory() as name:
        starts = Starts(model, Path(name), eager=eager)
        for number in range(rounds):
            say(f"{model.name}, {'eager' if eager else 'compiled'}, {number + 1} of {rounds}")
            found.setdefault(COLD, []).append(starts.ordinary(cold=True))
            found.setdefault(WARM, []).append(starts.ordinary(cold=False))
            with starts.source() as source:
                found.setdefault(WEIGHTS, []).append(starts.received(source))
                waiting, filled = starts.standby(source)
            found.setdefault(WAITING, []).append(waiting)
            found.setdefault(FILL, []).append(filled)
    return [
        Row(model.name, model.nbytes, eager, way, *_middle(each)) for way, each in found.items()
    ]


def _middle(starts: list[Start]) -> tuple[dict[str, float], float, list[float]]:
    """The phases and the seconds of the start in the middle, and the seconds of all."""
    ordered = sorted(starts, key=lambda start: start.seconds)
    chosen = ordered[len(ordered) // 2]
    return chosen.phases, chosen.seconds, [start.seconds for start in ordered]


def say(what: str) -> None:
    """Show what goes on."""
    print(f"==> {what}", flush=True)


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="of each way, without compilation")
    parser.add_argument("--eager", action="store_true", help="leave out what compiles")
    given = parser.parse_args()
    small, large = models()
    results = Results(dict(facts()), disturbance(), [])
    for model, rounds, eager in ((small, given.rounds, True), (large, given.rounds, True)):
        results.rows += measured(model, rounds, eager=eager)
        write(results)
    if not given.eager:
        results.rows += measured(small, 1, eager=False)
        write(results)


if __name__ == "__main__":
    main()
