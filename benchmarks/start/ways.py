"""The ways of starting one model, with or without compilation, beside one source."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmarks.page_cache import cool, warm
from benchmarks.start.instance import Instance, Machine, Start, netloader, serving
from benchmarks.start.models import Model

COLD, WARM, WEIGHTS, WAITING, FILL = (
    "default loader, cold",
    "default loader, warm",
    "netloader, weights only",
    "standby, until it waits",
    "standby, filled",
)
Found = Iterator[tuple[str, Start]]
"""What was started, and how that went."""


class Ways:
    """Starts one model in each way.

    The first start is that of the source, on a machine that was empty: what it has left there is
    what the warm ways find.
    """

    def __init__(self, model: Model, folder: Path, mode: tuple[str, ...]) -> None:
        self._model = model
        self._folder = folder
        self._mode = mode
        self._numbers = itertools.count()
        self._warm = self._machine()
        self._prefix = str(folder / "source-")

    def source(self) -> AbstractContextManager[None]:
        """A server that serves inside the block."""
        return self._source()

    def __iter__(self) -> Iterator[Callable[[], Found]]:
        """Each way, once; some make more than one row of the table."""
        yield self._cold
        yield self._own
        yield self._received
        yield self._standby

    @contextmanager
    def _source(self) -> Iterator[None]:
        words = netloader({"OUTPUT_PREFIX": self._prefix})
        with self._serving(self._model.full, words, self._warm) as instance:
            instance.wait(instance.healthy)
            yield

    def _cold(self) -> Found:
        self._files(cool)
        yield COLD, self._started(self._model.full, (), self._machine())

    def _own(self) -> Found:
        self._files(warm)
        yield WARM, self._started(self._model.full, (), self._warm)

    def _received(self) -> Found:
        words = self._words({"FALLBACK": "never"})
        yield WEIGHTS, self._started(self._model.bare, words, self._machine())

    def _standby(self) -> Found:
        words = self._words({"STANDBY": True})
        with self._serving(self._model.bare, words, self._warm) as instance:
            instance.wait(instance.waits)
            yield WAITING, instance.waiting()
            yield FILL, instance.filled()

    def _started(self, model: Path, words: tuple[str, ...], machine: Machine) -> Start:
        with self._serving(model, words, machine) as instance:
            instance.wait(instance.healthy)
            return instance.started()

    def _serving(
        self, model: Path, words: tuple[str, ...], machine: Machine
    ) -> AbstractContextManager[Instance]:
        return serving(f"start-{next(self._numbers)}", (str(model), *self._mode, *words), machine)

    def _words(self, extra: Mapping[str, object]) -> tuple[str, ...]:
        place = Path(f"{self._prefix}0.txt").read_text().strip()
        return netloader({"SOURCE": [{"device_id": 0, "sources": [place]}], **extra})

    def _machine(self) -> Machine:
        return Machine(self._folder / f"m{next(self._numbers)}")

    def _files(self, make: Callable[[Path], None]) -> None:
        for path in self._model.full.glob("*.safetensors"):
            make(path)
