"""What an engine notices while its weights are sent: `python -m benchmarks.beside`.

An engine of the demo model (`make demo`) decodes on one core. The server is in its process, and its
lanes share that core. A second process loads from it back to back on the other core. The cases, in
turns:

    idle             nobody loads
    tcp, shm         as fast as it goes
    tcp, RATE        with `max_bandwidth`; the way shm has no limit, the client reads by itself
    relay            a client of the engine serves what it receives to a second one
    sealing          nobody loads, and the engine's process computes its digests
    copy             the floor: the other core copies memory in C (memmove), and nothing is sent
    socket           the floor: a plain sender process on the engine's core, as fast as it goes
"""

import argparse
import ctypes
import multiprocessing
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any, Final

import torch

from benchmarks.figures import Beside
from demo.paths import MODEL
from netloader.config import Deadlines, Endpoint

CORE, OTHER_CORE = 0, 1
HOST: Final = "127.0.0.1"
IDENTITY: Final = {"model": "beside"}
START_S: Final = 300.0
CACHE_BYTES: Final = 32 << 20
TOKENS: Final = 400
"""Of one request: a step each."""
WARM_STEPS: Final = 5
COPIED: Final = 64 << 20
POLL_S: Final = 0.1
DECODING, SEALING = "decoding", "sealing"
"""What the engine's process does besides decoding: nothing, or digests."""
SLOW: Final = Deadlines(min_rate_bytes_per_s=1 << 20)
ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_HOST_IP": HOST,
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
SPAWN: Final = multiprocessing.get_context("spawn")

Specs = Sequence[tuple[str, tuple[int, ...], torch.dtype]]


@dataclass
class Case:
    """One case, with the seconds of every step and what was loaded meanwhile."""

    steps: list[float] = field(default_factory=list)
    loaded: list[float] = field(default_factory=list)
    """GB a second, one for each round."""

    def percentile(self, share: float) -> float:
        """Milliseconds."""
        ordered = sorted(self.steps)
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# -- processes -----------------------------------------------------------------------------------


def engine_process(pipe: Connection, rate: str, tokens: int, log: str) -> None:
    """An engine that serves its weights with and without a limit, and decodes when asked to."""
    written = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(written, 1)
    os.dup2(written, 2)
    from vllm import LLM, SamplingParams

    from netloader.io import ServerOptions, serve

    llm = LLM(str(MODEL), enforce_eager=True, kv_cache_memory_bytes=CACHE_BYTES, max_model_len=512)
    executor: Any = llm.llm_engine.engine_core.engine_core.model_executor
    model = executor.driver_worker.worker.model_runner.model
    named = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
    limited = ServerOptions(max_bandwidth=rate, deadlines=SLOW, max_clients=1)
    os.sched_setaffinity(0, {CORE})  # of this thread, and of those that it starts
    servers = [serve(dict(named), IDENTITY, options=o) for o in (None, limited)]
    for server in servers:
        server.wait_ready(START_S)
    pipe.send([server.endpoint.port for server in servers])
    pipe.send([(name, tuple(tensor.shape), tensor.dtype) for name, tensor in named])
    wanted = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0)
    while doing := pipe.recv():
        with sealing(dict(named)) if doing == SEALING else nullcontext():
            llm.llm_engine.add_request(str(time.monotonic()), "The weights", wanted)
            steps: list[float] = []
            while llm.llm_engine.has_unfinished_requests():
                begun = time.perf_counter()
                llm.llm_engine.step()
                steps.append(time.perf_counter() - begun)
        pipe.send(steps[WARM_STEPS:])


@contextmanager
def sealing(state: dict[str, torch.Tensor]) -> Iterator[None]:
    """A block beside which the weights are published anew, again and again."""
    from netloader.io import serve

    over = threading.Event()

    def seal() -> None:
        while not over.is_set():
            with serve(state, IDENTITY) as server:
                while not over.is_set() and not server.wait_ready(POLL_S):
                    pass

    thread = threading.Thread(target=seal)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def loading_process(pipe: Connection, port: int, specs: Specs, transport: str) -> None:
    """Load back to back until told to stop; then say how many bytes that were."""
    os.sched_setaffinity(0, {OTHER_CORE})
    from netloader.io import ClientOptions, fill

    state = {name: torch.zeros(shape, dtype=dtype) for name, shape, dtype in specs}
    options = ClientOptions(transports=(transport,), lanes=1, deadlines=SLOW)
    moved = 0
    pipe.send("ready")
    while not pipe.poll():
        outcome = fill(state, [Endpoint(HOST, port)], IDENTITY, options)
        assert outcome.ok, outcome.history()
        moved += outcome.nbytes
    pipe.send(moved)


def relaying_process(pipe: Connection, port: int, specs: Specs) -> None:
    """Load back to back, and give each segment to a second client of this process."""
    os.sched_setaffinity(0, {OTHER_CORE})
    from netloader.io import ClientOptions, ServerOptions, fill, listen

    first, second = (
        {name: torch.zeros(shape, dtype=dtype) for name, shape, dtype in specs} for _ in range(2)
    )
    options = ClientOptions(transports=("tcp",), lanes=1, deadlines=SLOW)
    moved = 0
    pipe.send("ready")
    while not pipe.poll():
        with listen(HOST, options=ServerOptions(transports=("tcp",), max_clients=1)) as relay:
            child = threading.Thread(
                target=fill, args=(second, [relay.endpoint], IDENTITY, replace(options))
            )
            child.start()
            outcome = fill(first, [Endpoint(HOST, port)], IDENTITY, replace(options, relay=relay))
            child.join()
        assert outcome.ok, outcome.history()
        moved += outcome.nbytes
    pipe.send(moved)


def copying_process(pipe: Connection) -> None:
    """Copy memory until told to stop."""
    os.sched_setaffinity(0, {OTHER_CORE})
    one, other = (ctypes.create_string_buffer(COPIED) for _ in range(2))
    moved = 0
    pipe.send("ready")
    while not pipe.poll():
        ctypes.memmove(one, other, COPIED)
        moved += COPIED
    pipe.send(moved)


def sending_process(port: int) -> None:
    """Send to a port until the connection ends."""
    os.sched_setaffinity(0, {CORE})
    memory = memoryview(bytearray(COPIED))
    with socket.create_connection((HOST, port)) as connection:
        while True:
            for at in range(0, COPIED, 1 << 20):
                connection.sendall(memory[at : at + (1 << 20)])


def receiving_process(pipe: Connection) -> None:
    """Receive from a sender process until told to stop."""
    os.sched_setaffinity(0, {OTHER_CORE})
    memory, moved = bytearray(1 << 20), 0
    with socket.create_server((HOST, 0)) as listening:
        sender = multiprocessing.Process(target=sending_process, args=(listening.getsockname()[1],))
        sender.start()
        connection, _ = listening.accept()
        pipe.send("ready")
        with connection:
            while not pipe.poll():
                moved += connection.recv_into(memory)
        sender.kill()
        sender.join()
    pipe.send(moved)


# -- measuring -----------------------------------------------------------------------------------


@contextmanager
def beside(case: Case, target: Callable[..., None] | None, *arguments: Any) -> Iterator[None]:
    """A block beside which a process works; what it moved is noted."""
    if target is None:
        yield
        return
    near, far = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(far, *arguments))
    process.start()
    try:
        assert near.poll(START_S)
        near.recv()
        begun = time.monotonic()
        yield
        near.send("stop")
        assert near.poll(START_S)
        case.loaded.append(near.recv() / 1e9 / (time.monotonic() - begun))
        process.join(START_S)
    finally:
        process.kill()


def measure(rounds: int, rate: str, tokens: int, log: str) -> Mapping[str, Case]:
    """Every case in turns, after one round that is not counted."""
    near, far = SPAWN.Pipe()
    engine = SPAWN.Process(target=engine_process, args=(far, rate, tokens, log))
    engine.start()
    far.close()
    assert near.poll(START_S)
    (free, limited), specs = near.recv(), near.recv()
    works: Mapping[str, Callable[[Case], Any]] = {
        "idle": lambda case: beside(case, None),
        "tcp": lambda case: beside(case, loading_process, free, specs, "tcp"),
        f"tcp, {rate}": lambda case: beside(case, loading_process, limited, specs, "tcp"),
        "shm": lambda case: beside(case, loading_process, free, specs, "shm"),
        "relay": lambda case: beside(case, relaying_process, free, specs),
        SEALING: lambda case: beside(case, None),
        "copy": lambda case: beside(case, copying_process),
        "socket": lambda case: beside(case, receiving_process),
    }
    cases = {name: Case() for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            case = cases[name] if number else Case()
            with work(case):
                near.send(SEALING if name == SEALING else DECODING)
                case.steps += near.recv()
    near.send("")
    engine.join(START_S)
    return cases


def measured(rounds: int, rate: str, tokens: int) -> list[Beside]:
    """Every case, as figures."""
    os.environ.update(ENVIRONMENT)
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        cases = measure(rounds, rate, tokens, log.name)
    return [
        Beside(
            name,
            case.percentile(0.5),
            case.percentile(0.99),
            statistics.median(case.loaded) if case.loaded else 0.0,
        )
        for name, case in cases.items()
    ]


def table(rows: Sequence[Beside]) -> str:
    """What was measured, for people."""
    idle = rows[0]
    lines = [f"{'beside':<16}{'p50 ms':>8}{'p99 ms':>8}{'x idle':>8}{'x idle':>8}{'GB/s':>8}"]
    for row in rows:
        ratios = f"{row.p50_ms / idle.p50_ms:>8.2f}{row.p99_ms / idle.p99_ms:>8.2f}"
        rate = f"{row.gigabytes_per_s:>8.2f}" if row.gigabytes_per_s else ""
        lines.append(f"{row.work:<16}{row.p50_ms:>8.1f}{row.p99_ms:>8.1f}{ratios}{rate}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="An engine's steps while its weights are sent.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", default="200MB")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    wanted = parser.parse_args()
    print(table(measured(wanted.rounds, wanted.rate, wanted.tokens)))


if __name__ == "__main__":
    main()
