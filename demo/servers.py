"""Start `vllm serve`, wait until it is healthy, stop it for certain. No child outlives us.

Each server is the leader of a process group of its own, which holds its engine and its workers
too. So Ctrl-C reaches only the demo, and the demo stops the groups one by one, the gentle way
first.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from demo.paths import CACHE, shown

HEALTH_DEADLINE_S: Final = 300.0
"""An engine is up in 20-40 s on two cores; its very first start on a slow disk takes longer."""

PROGRESS_EVERY_S: Final = 5.0
TAIL_LINES: Final = 20

WORKER_ERROR: Final = re.compile(r"\((?:Vllm)?Worker\S* pid=\d+\) ERROR [^\]]*\] ?(.*)")
"""A line of a worker's error. The worker loads the model, but it speaks long before the end of the
log, where the engine and the API server have only their pages about it."""

STOP_STEPS: Final = ((signal.SIGINT, 20.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))
STARTING_PATIENCE_S: Final = 3.0
"""How a server is asked to stop, and the seconds it has before the next, harder request; while it
starts, it has nothing to lose, and hardly listens.

The first goes to its leader alone, which then shuts its engine down in order (the engine would
otherwise be gone first, and the log end in the leader's complaints); the others go to them all.
"""

DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Talks to this machine only, whatever proxy the environment names."""


class DemoError(Exception):
    """Something that ends the demo, in words for the person who started it."""


@dataclass(slots=True)
class Server:
    """One `vllm serve` and all its processes."""

    name: str
    command: list[str]
    port: int
    log: Path
    process: "subprocess.Popen[bytes]"
    began: float = field(default_factory=time.monotonic)
    ready_after_s: float = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(
        self,
        path: str,
        body: Mapping[str, object],
        headers: Mapping[str, str] = MappingProxyType({}),
        timeout_s: float = 120.0,
    ) -> Any:
        """Send `body` as JSON and return the JSON answer."""
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **headers},
        )
        try:
            with DIRECT.open(request, timeout=timeout_s) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            detail = error.read(2000).decode(errors="replace")
            raise DemoError(f"the {self.name} answered {error.code}: {detail}") from error
        except (OSError, ValueError) as error:
            raise DemoError(f"the {self.name} did not answer: {error}\n{self.tail()}") from error

    def is_healthy(self) -> bool:
        """Whether GET /health is answered with 200."""
        try:
            with DIRECT.open(self.url + "/health", timeout=5.0) as answer:
                return bool(answer.status == 200)
        except OSError:  # refused, reset or late; HTTPError is one too
            return False

    def tail(self) -> str:
        """The end of its log: what a person needs when it did not come up."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        causes = [match[1] for line in lines if (match := WORKER_ERROR.match(line))]
        parts = (("what its worker said last", causes), (f"the end of {shown(self.log)}", lines))
        return "\n".join(
            line
            for title, part in parts
            if part
            for line in (f"{title}:", *(f"    {text}" for text in part[-TAIL_LINES:]))
        )


def start_server(
    name: str,
    command: list[str],
    port: int,
    log: Path,
    cpus: str | None,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Server:
    """Start `command`, with `more` in its environment; all it prints goes to `log`."""
    with log.open("wb") as sink:
        sink.write(f"$ {shlex.join(command)}\n".encode())
        sink.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**environment(cpus), **more},
            start_new_session=True,
        )
    return Server(name, command, port, log, process)


def environment(cpus: str | None) -> dict[str, str]:
    """Ours, and what keeps vLLM to this machine and to its share of the cores."""
    env = dict(os.environ)
    env.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override --kv-cache-memory-bytes
    env.update(
        HF_HUB_OFFLINE="1",
        VLLM_HOST_IP="127.0.0.1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        TOKENIZERS_PARALLELISM="false",
        VLLM_CPU_OMP_THREADS_BIND="nobind" if cpus is None else cpus,
    )
    env.setdefault("VLLM_CACHE_ROOT", str(CACHE / "vllm"))
    return env


def wait_until_healthy(server: Server, deadline_s: float = HEALTH_DEADLINE_S) -> None:
    """Return once `server` serves; raise DemoError when it died or took too long."""
    next_word = PROGRESS_EVERY_S
    while not server.is_healthy():
        elapsed = time.monotonic() - server.began
        if (code := server.process.poll()) is not None:
            raise DemoError(f"the {server.name} ended with code {code}\n{server.tail()}")
        if elapsed > deadline_s:
            raise DemoError(
                f"the {server.name} was not healthy after {deadline_s:.0f} s\n{server.tail()}"
            )
        if elapsed >= next_word:
            print(f"    {server.name}: starting, {elapsed:.0f} s", flush=True)
            next_word += PROGRESS_EVERY_S
        time.sleep(0.2)
    server.ready_after_s = time.monotonic() - server.began
    print(f"    {server.name}: healthy after {server.ready_after_s:.1f} s", flush=True)


def stop_server(server: Server) -> str:
    """Stop every process of `server`; returns the signal that it took, or how it had ended."""
    code = server.process.poll()
    for number, usual_s in STOP_STEPS:
        patience_s = usual_s if server.ready_after_s else STARTING_PATIENCE_S
        if code is None and number is signal.SIGINT:
            server.process.send_signal(number)
        elif not signal_group(server, number):
            return f"had ended with code {code}"
        if wait_for_group(server, patience_s):
            return number.name
    return "processes left after SIGKILL"


def signal_group(server: Server, number: int) -> bool:
    """Send `number` to all processes of `server`; False if there are none left."""
    try:
        os.killpg(server.process.pid, number)
    except (ProcessLookupError, PermissionError):  # or only a stranger's bear that number by now
        return False
    return True


def wait_for_group(server: Server, patience_s: float) -> bool:
    """Whether all processes of `server` are gone within `patience_s`."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        server.process.poll()  # collects the leader, or its number would count as taken
        if not signal_group(server, 0):
            return True
        time.sleep(0.05)
    return False


def free_ports(count: int) -> list[int]:
    """Ports that are free now: all are bound at once, so that they differ, then let go."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        return [int(bound.getsockname()[1]) for bound in sockets]
    finally:
        for bound in sockets:
            bound.close()


def cpu_shares(count: int) -> list[str | None]:
    """Split this machine's cores so that servers do not fight for them.

    Every share has the same number of cores, because the number of threads decides in which order
    sums are added up, and only equal sums make equal answers. None: too few cores to split.
    """
    cores = sorted(os.sched_getaffinity(0))
    each = min(len(cores) // count, 8)  # 135 million parameters keep no more than that busy
    if each == 0:
        return [None] * count
    return [",".join(map(str, cores[i * each : (i + 1) * each])) for i in range(count)]


def vllm_command(
    model: Path, port: int, load_format: str, extra: Mapping[str, object]
) -> list[str]:
    """The `vllm serve ...` line, as vLLM's guide writes it, with a small engine."""
    vllm = Path(sys.executable).with_name("vllm")
    options = {
        "--served-model-name": "demo",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--max-model-len": "512",
        "--kv-cache-memory-bytes": str(32 * 2**20),  # small, and its size need not be measured
        "--load-format": load_format,
    }
    command = [str(vllm), "serve", str(model), "--enforce-eager"]
    command += [word for option in options.items() for word in option]
    if extra:
        command += ["--model-loader-extra-config", json.dumps(extra)]
    return command
