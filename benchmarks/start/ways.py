"""The ways of starting one model, with or without compilation, beside one source."""

import itertools
import json
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmarks.page_cache import cool, warm
from benchmarks.start.instance import VLLM, Instance, Machine, Mode, Start, serving
from benchmarks.start.models import Model

COLD, WARM, WEIGHTS, OWN, CACHES, WAITING, FILL = (
    "default loader, cold",
    "default loader, warm",
    "netloader, weights only",
    "netloader, own caches",
    "netloader, source's caches",
    "standby, until it waits",
    "standby, filled",
)
Found = Iterator[tuple[str, Start]]
"""What was started, and how that went."""


class Ways:
    """Starts one model in each way. The warm ones follow a cold one, on its machine."""

    def __init__(self, model: Model, folder: Path, mode: Mode) -> None:
        self._model = model
        self._folder = folder
        self._mode = mode
        self._numbers = itertools.count()
        self._used = self._machine()
        self._prefix = str(folder / "source-")
        self._token = folder / "token"
        self._token.write_text(secrets.token_hex(16))
        self._token.chmod(0o600)

    def __iter__(self) -> Iterator[Callable[[], Found]]:
        """Each way, once; some make more than one row of the table."""
        yield self._cold
        yield self._again
        yield self._received
        yield self._received_again
        yield self._with_caches
        yield self._standby

    @contextmanager
    def source(self) -> Iterator[None]:
        """A server that serves inside the block."""
        words = self._words({"OUTPUT_PREFIX": self._prefix, "CACHES": True})
        with self._vllm(self._model.full, words, self._machine()) as instance:
            instance.wait(instance.healthy)
            yield

    def _cold(self) -> Found:
        self._files(cool)
        self._used = self._machine()
        yield COLD, self._started(self._vllm(self._model.full, (), self._used))

    def _again(self) -> Found:
        self._files(warm)
        yield WARM, self._started(self._vllm(self._model.full, (), self._used))

    def _received(self) -> Found:
        yield WEIGHTS, self._filled_on(self._machine())

    def _received_again(self) -> Found:
        yield OWN, self._filled_on(self._used)

    def _with_caches(self) -> Found:
        """On a machine without a folder of the model."""
        run = (sys.executable, "-m", "netloader", "run", self._source())
        trusted = ("--caches", "--token-file", str(self._token), "--")
        extra = json.dumps({"LISTEN_HOST": "127.0.0.1", "FALLBACK": "never"})
        words = ("serve", "--model-loader-extra-config", extra)
        command = (*run, *trusted, *VLLM, *words)
        yield CACHES, self._started(self._serving(command, self._machine()))

    def _standby(self) -> Found:
        words = self._words({"SOURCE": self._sources(), "STANDBY": True})
        with self._vllm(self._model.bare, words, self._used) as instance:
            instance.wait(instance.waits)
            yield WAITING, instance.waiting()
            yield FILL, instance.filled(self._token.read_text())

    def _filled_on(self, machine: Machine) -> Start:
        words = self._words({"SOURCE": self._sources(), "FALLBACK": "never"})
        return self._started(self._vllm(self._model.bare, words, machine))

    def _started(self, server: AbstractContextManager[Instance]) -> Start:
        with server as instance:
            instance.wait(instance.healthy)
            return instance.started()

    def _vllm(
        self, model: Path, words: tuple[str, ...], machine: Machine
    ) -> AbstractContextManager[Instance]:
        return self._serving((*VLLM, "serve", str(model), *words), machine)

    def _serving(
        self, command: tuple[str, ...], machine: Machine
    ) -> AbstractContextManager[Instance]:
        return serving(f"start-{next(self._numbers)}", command, machine, self._mode)

    def _source(self) -> str:
        return Path(f"{self._prefix}0.txt").read_text().strip()

    def _sources(self) -> list[object]:
        return [{"device_id": 0, "sources": [self._source()]}]

    def _words(self, extra: Mapping[str, object]) -> tuple[str, ...]:
        """The words that choose netloader, with its fields."""
        common = {"MODEL": "bench", "LISTEN_HOST": "127.0.0.1", "AUTH_TOKEN_FILE": str(self._token)}
        fields = json.dumps({**common, **extra})
        return ("--load-format", "netloader", "--model-loader-extra-config", fields)

    def _machine(self) -> Machine:
        return Machine(self._folder / f"m{next(self._numbers)}")

    def _files(self, make: Callable[[Path], None]) -> None:
        for path in self._model.full.glob("*.safetensors"):
            make(path)
