"""The processes of a scenario: workers of vllm-ascend. All have ended after the test."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.ascend import models
from tests.ascend.build import atb, sleep_allocator
from tests.ascend.models import Folders
from tests.ascend.talk import STACKS
from tests.ascend_sim.build import CACHE, build
from tests.npu.trace import Trace
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
TAIL = 8000

SETTINGS = {
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    "TASK_QUEUE_ENABLE": "0",
    "SOC_VERSION": "ascend910b2",
    "HF_HUB_OFFLINE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "TORCHDYNAMO_DISABLE": "1",
    "SIM_NPU_COUNT": "4",
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}

ENGINE = {
    "enforce_eager": True,
    "max_model_len": 128,
    "skip_tokenizer_init": True,
    "load_format": "netloader",
}


class ActorError(Exception):
    """A worker failed, is silent or is gone; the text ends with the end of its log."""


def environment(release: Path, behind: str) -> dict[str, str]:
    """The environment of a process that has `release` in front and other packages behind."""
    folders = (
        ROOT,
        release,
        release.parent / "common",
        ROOT / "tests" / "ascend" / "simulators",
    )
    return {
        **os.environ,
        **SETTINGS,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "LD_LIBRARY_PATH": f"{build(CACHE)}:{atb()}",
        "ASCEND_PACKAGES_BEHIND": behind,
        "ASCEND_COMPILED": str(sleep_allocator(release / "camem_allocator.cpp", build(CACHE))),
    }


class Actor:
    """One worker or engine, from outside."""

    def __init__(self, address: str, spec: Mapping[str, Any]) -> None:
        self.log_path = Path(spec["log"])
        self._connection = Client(address, "AF_UNIX")
        self._connection.send(spec)
        self.pid = 0
        self.pid = self._answer()

    def up(self) -> Self:
        """Wait until it has loaded its model."""
        self._answer()
        return self

    def tell(self, method: str, *arguments: Any) -> Any:
        """Have it call one of its methods."""
        self._connection.send((method, *arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv() if self._connection.poll(PATIENCE_S) else self._end()
        except (EOFError, OSError):
            answer = {"error": "it is gone"}
        if isinstance(answer, dict) and "error" in answer:
            raise ActorError(f"{answer['error']}\n{self.log()[-TAIL:]}")
        return answer

    def _end(self) -> dict[str, str]:
        """End one that is silent, so that its log shows where each of its threads is."""
        if self.pid:
            os.kill(self.pid, STACKS)
            self._connection.poll(PATIENCE_S)
        return {"error": "no answer in time"}

    def log(self) -> str:
        """All it has printed."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def said(self, event: str) -> list[str]:
        """Lines of its log with an event of netloader."""
        return [line for line in self.log().splitlines() if event in line]

    def await_line(self, pattern: str) -> str:
        """Wait for a line of its log."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if found := re.search(f"^.*{pattern}.*$", self.log(), re.MULTILINE):
                return found[0]
            time.sleep(0.05)
        raise ActorError(f"no {pattern!r} in its log\n{self.log()[-TAIL:]}")

    def close(self) -> None:
        """Hang up: then it ends."""
        self._connection.close()


class ForkServer:
    """The process that has imported everything."""

    def __init__(self, folder: Path, release: Path, behind: str) -> None:
        self.folder = folder
        self.release = release
        self.trace = folder / "trace"
        self.address = str(folder / "fork_server")
        self.log = folder / "fork_server.log"
        environ = {**environment(release, behind), "SIM_CANN_TRACE": str(self.trace)}
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.ascend.fork_server", self.address],
                stdout=subprocess.PIPE,
                stderr=log,
                env=environ,
                cwd=folder,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        ready = 0
        for line in self._process.stdout:
            ready += line == "ready\n"
            if ready == 2:
                return
        raise ActorError(f"the fork_server did not start\n{self.log.read_text()[-TAIL:]}")

    def close(self) -> None:
        """End it."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a server and its client have in common, and where one of them is."""

    model: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    device: int = 0
    rank: int = 0
    number: int = 0
    """The rank among all replicas, by which SOURCE names it."""
    meeting: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    kind: str = "worker"


class Server(NamedTuple):
    """A worker that listens."""

    actor: Actor
    port: int


class Cast:
    """Starts actors of one release."""

    def __init__(self, fork_server: ForkServer, name: str, stack: ExitStack) -> None:
        self.folder = fork_server.folder
        self.release = fork_server.release
        self.trace = fork_server.trace
        self.seen: list[str] = []
        """What is to be said of the test in the table."""
        self._name = re.sub(r"\W+", "-", name)
        self._stack = stack
        self._address = fork_server.address
        self._count = 0

    def start(self, spec: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Actor:
        """One actor, which is loading."""
        self._count += 1
        log = str(self.folder / f"{self._name}{self._count}.log")
        whole = {"env": dict(environment or {}), "log": log, **spec}
        address = f"{self._address}.early" if spec.get("early") else self._address
        return self._stack.enter_context(closing(Actor(address, whole)))

    def early(self, environment: Mapping[str, str] | None = None) -> Actor:
        """A process in which no plugin has been loaded yet."""
        return self.start({"module": "tests.ascend.early", "early": True}, environment).up()

    def worker(self, wanted: WorkerSpec, model: Path, extra: Mapping[str, Any]) -> Actor:
        """A worker of one rank, which is loading."""
        config = {"MODEL": "m", "LISTEN_HOST": "127.0.0.1", **wanted.extra, **extra}
        engine = {
            **ENGINE,
            "model": str(model),
            "model_loader_extra_config": config,
            **({"quantization": "ascend"} if models.is_quantized(wanted.model) else {}),
            **wanted.options,
        }
        spec = {
            "module": f"tests.ascend.{wanted.kind}",
            "engine": engine,
            "device": wanted.device,
            "rank": wanted.rank,
            "meeting": wanted.meeting
            or f"file://{self.folder}/meeting-{self._count}-{free_port()}",
        }
        return self.start(spec, wanted.environment)

    def folders(self, model: str) -> Folders:
        """The folders of a model, which is written once."""
        folders = Folders(self.folder / model / "full", self.folder / model / "bare")
        if not folders.full.is_dir():
            models.MODELS[model](folders)
        return folders

    def server(self, wanted: WorkerSpec, port: int = 0) -> Server:
        """A server that has loaded its model from files."""
        port = port or free_port()
        return Server(self.loading(wanted, port).up(), port)

    def loading(self, wanted: WorkerSpec, port: int) -> Actor:
        """A server that is loading its model from files."""
        return self.worker(wanted, self.folders(wanted.model).full, {"LISTEN_PORT": port})

    def offering(self, wanted: WorkerSpec) -> Server:
        """The same, and it serves."""
        server = self.server(wanted)
        server.actor.tell("offer")
        word = server.actor.await_line("netloader.server.(?:offered|refused)")
        if "refused" in word:
            raise ActorError(word)
        return server

    def chained(self, wanted: WorkerSpec, source: int) -> Server:
        """A client of a server, and a server itself."""
        port = free_port()
        actor = self.client(wanted, source, LISTEN_PORT=port).up()
        actor.tell("offer")
        actor.await_line("netloader.server.offered")
        return Server(actor, port)

    def compare(self, server: Actor, client: Actor) -> None:
        """AssertionError unless all tensors are equal; what was compared goes into the table."""
        self.seen.append(compared(server, client))

    def recovering(self, wanted: WorkerSpec, *ports: int) -> Actor:
        """A client that has the weight files as well; it is loading."""
        sources = [{"device_id": wanted.number, "sources": [f"127.0.0.1:{port}" for port in ports]}]
        return self.worker(wanted, self.folders(wanted.model).full, {"SOURCE": sources})

    def await_calls(self, trace: Trace, names: Iterable[str], pid: int) -> None:
        """Wait until a process has made one of these calls to CANN."""
        end = time.monotonic() + PATIENCE_S
        while not trace.of(names, pid):
            if time.monotonic() > end:
                raise ActorError(f"process {pid} called none of {names}")
            time.sleep(0.001)

    def client(self, wanted: WorkerSpec, *ports: int, **extra: Any) -> Actor:
        """A client of some servers that has no weight files; it is loading."""
        bare = self.folders(wanted.model).bare
        sources = [{"device_id": wanted.number, "sources": [f"127.0.0.1:{port}" for port in ports]}]
        return self.worker(wanted, bare, {"SOURCE": sources, "FALLBACK": "never", **extra})


def paired(cast: Cast, wanted: WorkerSpec) -> tuple[Actor, Actor]:
    """A server and a client of it on the next device, whose tensors are equal."""
    server = cast.offering(wanted)
    client = cast.client(replace(wanted, device=wanted.device + 1), server.port).up()
    cast.compare(server.actor, client)
    return server.actor, client


def compared(server: Actor, client: Actor) -> str:
    """What was compared; AssertionError unless all tensors are equal."""
    ours, theirs = client.tell("held"), server.tell("held")
    differing = {
        path: (theirs.get(path), ours.get(path))
        for path in {**theirs, **ours}
        if theirs.get(path) != ours.get(path)
    }
    assert not differing, f"server and client: {differing}"
    stored = sum("FRACTAL_NZ" in text for text in ours.values())
    received = " ".join(client.said("netloader.loader.received"))
    layout = re.search(r"layout=(\w+)", received)
    nbytes = re.search(r"transfer.bytes=(\d+)", received)
    words = [f"{len(ours)} tensors equal"]
    words += [f"{stored} of them FRACTAL_NZ"] if stored else []
    words += [f"{layout[1]}"] if layout else []
    words += [f"{int(nbytes[1]):,} bytes"] if nbytes else []
    return ", ".join(words)


Place = Callable[[WorkerSpec, int, int, int], WorkerSpec]
"""From a wanted, the instance's first device, the rank and a port to the wanted of that rank."""


def ranks_paired(
    cast: Cast, wanted: WorkerSpec, place: Place, other: WorkerSpec | None = None
) -> None:
    """Two instances of two ranks each, on four devices, compared rank by rank.

    `other` is what the client specs, if that is something else.
    """
    ports = free_port()
    servers = [cast.loading(one, ports) for one in _instance(wanted, place, 0)]
    for server in servers:
        server.up()
    for server in servers:
        server.tell("offer")
        server.await_line("netloader.server.offered")
    clients = [
        cast.client(one, ports + rank)
        for rank, one in enumerate(_instance(other or wanted, place, 2))
    ]
    for client in clients:
        client.up()
    for server, client in zip(servers, clients, strict=True):
        cast.compare(server, client)


def instance(cast: Cast, wanted: WorkerSpec, environment: Mapping[str, str]) -> list[Actor]:
    """Two tensor parallel ranks that have loaded from files."""
    port = free_port()
    ranks = _instance(wanted, tensor_rank, 0)
    mixed = [replace(one, environment={**one.environment, **environment}) for one in ranks]
    return [actor.up() for actor in [cast.loading(one, port) for one in mixed]]


def placed_replica(wanted: WorkerSpec, first: int, rank: int, port: int) -> WorkerSpec:
    """The same where the worker does not count, as with vllm-ascend 0.23."""
    return replace(replica(wanted, first, rank, port), device=first + rank)


def _instance(wanted: WorkerSpec, place: Place, first: int) -> list[WorkerSpec]:
    port = free_port()
    return [place(wanted, first, rank, port) for rank in range(2)]


def tensor_rank(wanted: WorkerSpec, first: int, rank: int, port: int) -> WorkerSpec:
    """One of two tensor parallel ranks."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return replace(
        wanted,
        options={**wanted.options, "distributed_executor_backend": "external_launcher"},
        device=first + rank,
        rank=rank,
        number=rank,
        meeting=f"tcp://127.0.0.1:{port}",
        environment={**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
    )


def replica(wanted: WorkerSpec, first: int, rank: int, port: int) -> WorkerSpec:
    """One of two data parallel replicas of one rank each; its worker counts on to its device."""
    environment = {
        "VLLM_DP_SIZE": "2",
        "VLLM_DP_RANK": str(rank),
        "VLLM_DP_RANK_LOCAL": str(rank),
        "VLLM_DP_MASTER_IP": "127.0.0.1",
        "VLLM_DP_MASTER_PORT": str(port),
    }
    return replace(wanted, device=first, number=rank, environment=environment)
