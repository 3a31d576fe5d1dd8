"""`netloader bench`: how fast bytes come from a server, or how fast this host is with itself."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from rich.text import Text

from netloader.cli.answers import Answer, CommandError
from netloader.cli.bars import bar
from netloader.cli.codes import Code
from netloader.cli.copying import LAYOUTS
from netloader.cli.places import places_of
from netloader.cli.sources import ask_first, failure
from netloader.config import Endpoint
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest
from netloader.io.client import fill
from netloader.io.clock import monotonic
from netloader.io.options import ClientOptions
from netloader.io.publishing import ServerOptions
from netloader.io.server import serve
from netloader.io.store.memory import HostStore
from netloader.io.store.module import ModuleStore
from netloader.units import duration, rate, size

SEALED_S = 600.0


@dataclass(frozen=True, slots=True)
class Target:
    """What is received."""

    source: Endpoint
    identity: Identity
    manifest: Manifest


def run(source: str | None, size_mib: int, times: int, options: ClientOptions) -> Answer:
    """Receive the weights of a server into memory, `times` times, and throw them away.

    Without a source, `size_mib` MiB are sent from this process to itself.

    Raises:
        CommandError: they cannot be received.
    """
    if source is not None:
        told = ask_first(places_of([source], options), {}, options)
        return _measured(Target(told.source, told.identity, told.manifest), times, options)
    with _loopback(size_mib) as target:
        return _measured(target, times, replace(options, tls=None))


@contextmanager
def _loopback(size_mib: int) -> Iterator[Target]:
    tensors = {f"w{n}": torch.ones(1 << 20, dtype=torch.uint8) for n in range(size_mib)}
    identity = Identity({"model": "bench"})
    with serve(tensors, identity, options=ServerOptions()) as server:
        server.wait_ready(SEALED_S)
        yield Target(server.endpoint, identity, ModuleStore([*tensors.items()]).manifest)


def _measured(target: Target, times: int, options: ClientOptions) -> Answer:
    seconds = [_once(target, options) for _ in range(times)]
    middle, nbytes = statistics.median(seconds), target.manifest.nbytes
    data = {
        "source": str(target.source),
        "bytes": nbytes,
        "seconds": [round(each, 4) for each in seconds],
        "bytes_per_s": round(nbytes / middle),
    }
    text = f"{size(nbytes)} in {duration(middle)} ({rate(nbytes / middle)}), verified"
    spread = f"median of {times}; fastest {duration(min(seconds))}"
    return Answer(data, (Text(f"{text}: {spread}"),))


def _once(target: Target, options: ClientOptions) -> float:
    store = HostStore(target.manifest)
    with bar(str(target.source)) as report:
        chosen = replace(options, layouts=LAYOUTS, report=report, timeout_s=None)
        begun = monotonic()
        outcome = fill(store, target.source, target.identity, chosen)
        passed = monotonic() - begun
    if not outcome.ok:
        attempts = outcome.attempts
        raise failure(attempts[-1]) if attempts else CommandError(Code.FAILED, "nothing was asked")
    return passed
