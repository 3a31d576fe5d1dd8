"""Servers and clients on the simulated NPU, as real processes forked with their imports done.

Each begins with no device: torch_npu is imported where they are forked from, and nothing else.
Beside its server, an engine works on the default stream and checks its own answers.
"""

import importlib
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from coverage import Coverage

from netloader.io import ClientOptions, Deadlines, Outcome, ServerOptions, fill, serve
from netloader.io.clock import monotonic
from tests.npu.models import MIB, MODELS, digest
from tests.npu.simulator import ROOT, torch_npu
from tests.support.peers import (
    FORKS,
    IDENTITY,
    PATIENCE_S,
    Line,
    Spec,
    Watch,
    Words,
    orders,
    possessions,
    summary,
)

FORKS.set_forkserver_preload(["tests.npu.peers"])

ENGINE_PAUSE_S = 0.002
MOST_TIMES = 20_000
"""How many answers an engine remembers the time of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NpuSpec(Spec):
    """What a peer is to be, and on what."""

    transports: tuple[str, ...] = ("hccl",)
    model: str = "plain"
    device: int = 0
    segment_mib: int = 4
    knobs: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of this process."""
    fills: int = 1
    """How many times a client fills its model, one after another."""
    checkpoint: str = ""
    """Where a server writes its model, and what a client without a source loads."""
    source: str = ""
    """A folder with another netloader: a copy in which a mistake was planted."""
    measured: bool = False
    """Whether to write down which lines ran."""


class Engine(threading.Thread):
    """Uses the device's default stream as inference does: some kernels, then an answer."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(name="engine", daemon=True)
        self._device = device
        self.answers = 0
        self.wrong = 0
        self.trouble = ""
        self.times: list[tuple[float, float]] = []
        """When each answer was there, and what it took."""
        self.ready = threading.Event()

    def run(self) -> None:
        pause = threading.Event()
        torch_npu.npu.set_device(self._device)
        question = torch.zeros(1 << 16, dtype=torch.int32, device=self._device)
        answer = torch.empty_like(question)
        try:
            while True:
                begun = monotonic()
                question.fill_(self.answers)
                answer.copy_(question)
                self.wrong += int(answer[-1].item()) != self.answers
                ended = monotonic()
                self.answers += 1
                if len(self.times) < MOST_TIMES:
                    self.times.append((ended, ended - begun))
                self.ready.set()
                pause.wait(ENGINE_PAUSE_S)
        except Exception as error:
            self.trouble = str(error)
            self.ready.set()


def memory(device: torch.device) -> Words:
    """What of the device's memory is torch's, and what is taken beside it: by communicators."""
    free, total = torch_npu.npu.mem_get_info(device)
    reserved = torch_npu.npu.memory_reserved(device)
    return {"torch_bytes": reserved, "other_bytes": total - free - reserved}


def holds(device: torch.device) -> Words:
    """What this process holds; threads of simulated streams aside, which torch_npu keeps for good.

    (It uses 32 in turn, and on a device a stream is not a thread.)
    """
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    threads = sum(name != "sim-stream" for name in names)
    return {**possessions(), **memory(device), "threads": threads}


def act_as_server(spec: Spec, line: Line, say: Callable[..., None], watch: Watch) -> None:
    """Serve, with an engine at work beside it, until hung up on."""
    assert isinstance(spec, NpuSpec)
    _role(spec, "_serve")(spec, line, say, watch)


def act_as_client(spec: Spec, line: Line, say: Callable[..., None], watch: Watch) -> None:
    """Fill a model from the sources; then say what it holds, as often as asked."""
    assert isinstance(spec, NpuSpec)
    _role(spec, "_fill")(spec, line, say, watch)


def act_as_member(spec: Spec, line: Line, say: Callable[..., None], watch: Watch) -> None:
    """Be one of the two of a group (rank 0 or 1: `seed`), and use it once, or twice at rank 0."""
    assert isinstance(spec, NpuSpec)
    _role(spec, "_belong")(spec, line, say, watch)


def _role(spec: NpuSpec, name: str) -> Callable[..., None]:
    """What a process is to do, with its settings made and with the netloader it is to use."""
    os.environ.update(spec.knobs)
    here = importlib.import_module(__name__)
    if spec.source:
        for module in [m for m in sys.modules if m.partition(".")[0] == "netloader"]:
            del sys.modules[module]
        del sys.modules[__name__]
        sys.path.insert(0, spec.source)
        here = importlib.import_module(__name__)
    elif spec.measured:
        coverage = Coverage(config_file=str(ROOT / "pyproject.toml"), data_suffix=True)
        coverage.set_option("run:patch", ["_exit"])  # how peers end
        coverage.start()
    torch_npu.npu.set_device(spec.device)
    role: Callable[..., None] = getattr(here, name)
    return role


def _own(deadlines: Deadlines) -> Deadlines:
    """The same deadlines, of the class that this process's netloader checks for (`spec.source`)."""
    return Deadlines(**asdict(deadlines))


def _serve(spec: NpuSpec, line: Line, say: Callable[..., None], watch: Watch) -> None:
    device = torch.device("npu", spec.device)
    module = MODELS[spec.model](spec.seed, device)
    engine = Engine(device)
    engine.start()
    engine.ready.wait()
    options = ServerOptions(
        transports=spec.transports,
        segment_bytes=spec.segment_mib * MIB,
        deadlines=_own(spec.deadlines),
        max_clients=spec.max_clients,
    )
    if spec.checkpoint:
        torch.save({name: t.cpu() for name, t in module.state_dict().items()}, spec.checkpoint)
    torch_npu.npu.synchronize(device)
    bare = memory(device)
    server = serve(module, IDENTITY, spec.host, spec.port, options)
    say(endpoint=str(server.endpoint), digest=digest(module), bare=bare, pid=os.getpid())
    for order in orders(line):
        match order:
            case "go on":
                watch.go_on.set()
            case "close":
                server.close()
                say(closed=True)
            case "times":
                say(times=engine.times)
            case _:
                say(
                    pid=os.getpid(),
                    closed=watch.closed,
                    reasons=dict(watch.reasons),
                    errors=watch.errors,
                    answers=engine.answers,
                    wrong=engine.wrong,
                    trouble=engine.trouble,
                    **holds(device),
                )


def _fill(spec: NpuSpec, line: Line, say: Callable[..., None], watch: Watch) -> None:
    device = torch.device("npu", spec.device)
    module = MODELS[spec.model](spec.seed + 1000, device)
    places = _places(module)
    options = ClientOptions(
        transports=spec.transports,
        report=lambda done, total: watch.reached(share=done / total),
        deadlines=_own(spec.deadlines),
    )

    def work() -> None:
        try:
            fill_and_tell()
        except Exception as error:  # a broken device, or UnsafeError
            say(ok=False, raised=f"{type(error).__name__}: {error}", attempts=[])

    def fill_and_tell() -> None:
        torch_npu.npu.set_device(device)
        for _ in range(spec.fills):
            outcome = fill(module, spec.sources, IDENTITY, options)
            if spec.checkpoint and not outcome.ok:
                module.load_state_dict(torch.load(spec.checkpoint))
            in_place = _places(module) == places
            say(digest=digest(module), in_place=in_place, **memory(device), **told(outcome))

    working = threading.Thread(target=work)
    working.start()
    for order in orders(line):
        if order == "go on":
            watch.go_on.set()
            continue
        working.join()
        if order == "free":
            _free(module)
        say(digest=digest(module), pid=os.getpid(), **holds(device))


def _free(module: torch.nn.Module) -> None:
    """Let go of the memory of a model, as an engine does of what it has repacked."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)


def _places(module: torch.nn.Module) -> list[int]:
    """Where the tensors are."""
    return [tensor.data_ptr() for tensor in module.state_dict().values()]


def told(outcome: Outcome) -> Words:
    """An outcome in plain words."""
    return {**summary(outcome), "state": outcome.state.value, "dirty": outcome.weights_dirty}


def _belong(spec: NpuSpec, line: Line, say: Callable[..., None], watch: Watch) -> None:
    from torch._C._distributed_c10d import FileStore

    from netloader.io.transports.backends import BACKENDS, Ticket, failure

    hccl, rank = BACKENDS["hccl"], spec.seed
    ticket = Ticket(FileStore(spec.checkpoint, 2), rank, "session", "127.0.0.1", PATIENCE_S)
    buffer = torch.zeros(MIB, dtype=torch.uint8, device=torch.device("npu", spec.device))
    group = hccl.connect(ticket)
    hccl.wait(hccl.move(group, buffer, rank), PATIENCE_S, threading.Event())
    say(joined=True)
    works = [hccl.move(group, buffer, rank)] if rank == 0 else []
    for _ in orders(line):
        say(failed=[bool(work.is_completed() and failure(work)) for work in works])
