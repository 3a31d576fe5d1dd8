"""A serving process, watched from outside while strangers are at its port."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

from torch import nn

from netloader.config import Endpoint
from netloader.io import fill
from tests.unit.io.helpers import FAST, IDENTITY, MIB, asking, contents, eventually, random, zoo

ROOT = Path(__file__).parents[2]
MARK = "planted7f3a"
"""Part of whatever a stranger says; it must not come back in a log."""
HANDSHAKE_S = 8.0
"""Who stands still for some seconds in the middle of it is an honest client all the same."""
PATIENCE_S = 30.0
TRANSPORTS = ("tcp", "gloo")
Attack = Callable[[Endpoint], None]

HOST = """
import json, sys
from netloader.io import Deadlines, ServerOptions, serve
from netloader.log import configure_json
from tests.e2e.load_probe import citadel
from tests.unit.io.helpers import IDENTITY, KIB, sealed

spec = json.loads(sys.argv[1])
dialled = []
sys.addaudithook(lambda event, args: event == "socket.connect" and dialled.append(str(args[1])))
configure_json(spec["log"])
options = ServerOptions(
    segment_bytes=64 * KIB, max_clients=16, deadlines=Deadlines(**spec["deadlines"])
)
with sealed(serve(citadel(1), IDENTITY, options=options)) as server:
    print(server.endpoint, flush=True)
    for _ in sys.stdin:
        print(json.dumps(dialled), flush=True)
"""
CLIENT = """
import sys
from netloader.io import fill
from tests.e2e.load_probe import citadel
from tests.unit.io.helpers import IDENTITY, asking, contents

target = citadel(77)
outcome = fill(target, sys.argv[2:], IDENTITY, asking(sys.argv[1]))
sys.exit(outcome.history() if not outcome.ok or contents(target) != contents(citadel(1)) else 0)
"""


def citadel(seed: int) -> nn.Module:
    """Every kind of tensor, and more bytes than fit into the buffers of a connection."""
    module = zoo(seed)
    module.register_buffer("bulk", random(4 * MIB, seed=seed + 20))
    return module


class Host:
    """The serving process, watched from outside; a context manager."""

    def __init__(self, log: Path) -> None:
        deadlines = {"handshake_s": HANDSHAKE_S, "validate_s": 20, "stall_s": 5}
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOST, json.dumps({"log": str(log), "deadlines": deadlines})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        self.endpoint = Endpoint.parse(self._line().strip())
        self.expected = contents(citadel(1))
        for transport in TRANSPORTS:  # what stays of the first use of a library is no leak
            self.serves(transport)
        assert eventually(self._is_idle, PATIENCE_S)
        self.calm = self.counts()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _is_idle(self) -> bool:
        """Whether both of the first sessions are over; their threads are gone then."""
        return self.log().count("netloader.session.closed") == len(TRANSPORTS)

    def counts(self) -> tuple[int, int]:
        """Threads and descriptors."""
        place = Path(f"/proc/{self._process.pid}")
        return len(list((place / "task").iterdir())), len(list((place / "fd").iterdir()))

    def is_calm(self) -> bool:
        """Whether nothing is left of whoever came."""
        return all(now <= then for now, then in zip(self.counts(), self.calm, strict=True))

    def peak_kib(self) -> int:
        """The most memory it ever had."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    def dialled(self) -> list[str]:
        """Every address it ever connected to."""
        assert self._process.stdin is not None
        self._process.stdin.write("whom did you call?\n")
        self._process.stdin.flush()
        addresses: list[str] = json.loads(self._line())
        return addresses

    def log(self) -> str:
        """All it has logged."""
        return self._log.read_text()

    def serves(self, transport: str) -> None:
        """An honest client gets everything."""
        target = citadel(77)
        options = asking(transport, deadlines=replace(FAST, queue_s=PATIENCE_S))
        outcome = fill(target, [self.endpoint], IDENTITY, options)
        assert outcome.ok, outcome.history()
        assert contents(target) == self.expected

    @contextlib.contextmanager
    def unharmed(self) -> Iterator[None]:
        """Afterwards it serves as before; no thread, descriptor or word of a stranger is left."""
        before = len(self.log())
        yield
        for transport in TRANSPORTS:
            self.serves(transport)
        assert eventually(self.is_calm, PATIENCE_S), (self.counts(), self.calm)
        said = self.log()[before:]
        assert MARK not in said
        assert all(json.loads(line)["severity"] != "ERROR" for line in said.splitlines()), said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def again_and_again(attack: Attack, endpoint: Endpoint) -> Iterator[None]:
    """Have it happen once, and over and over until the end; a wait in vain is a failure."""
    over, once = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def besiege() -> None:
        while not (over.is_set() and once.is_set()):
            try:
                attack(endpoint)
            except (TimeoutError, AssertionError) as error:
                failures.append(error)
                over.set()
            except OSError:
                pass  # closed or reset in the middle: as it should be
            once.set()
            over.wait(0.01)

    thread = threading.Thread(target=besiege)
    thread.start()
    try:
        assert once.wait(PATIENCE_S)
        yield
    finally:
        over.set()
        thread.join(PATIENCE_S)
    assert failures == []
