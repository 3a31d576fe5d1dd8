"""The transport `mooncake`: one-sided writes by Mooncake's transfer engine.

An engine lives as long as the process, one for each address of this host: ending one takes a second
in which no other thread of Python runs (Mooncake 0.3.13). When nothing is transferred it takes no
processor time.

As for Mooncake itself, `MOONCAKE_PROTOCOL` chooses `tcp` (the default) or `rdma`, and
`MOONCAKE_DEVICE` the devices of the latter.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.transports.one_sided import Library, OneSided

NO_METADATA_SERVER = "P2PHANDSHAKE"
POOL = "MC_TCP_ENABLE_CONNECTION_POOL"
UNDER_WAY, DONE = 0, 1
"""What `transfer_check_status` returns; a negative number is a failure."""


def _failed(what: str) -> TransferError:
    return TransferError(Reason.TRANSFER_FAILED, f"mooncake {what}")


class Engines:
    """The engines of this process by address. Safe to use from any thread."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, str], Any] = {}
        self._lock = threading.Lock()

    def at(self, host: str) -> "MooncakeEngine":
        """One end for a session, of the engine that peers reach at `host`.

        Raises:
            TransferError: the engine cannot be made.
        """
        from mooncake.engine import TransferEngine

        key = os.getpid(), host  # a forked child has none of the threads of its parent's engine
        protocol = os.environ.get("MOONCAKE_PROTOCOL", "tcp")
        device = os.environ.get("MOONCAKE_DEVICE", "")
        with self._lock:
            if key not in self._made:
                with _without_pool():
                    engine = TransferEngine()
                    if engine.initialize(host, NO_METADATA_SERVER, protocol, device):
                        raise _failed(f"cannot begin with MOONCAKE_PROTOCOL={protocol!r} at {host}")
                self._made[key] = engine
            return MooncakeEngine(self._made[key], host)


@contextlib.contextmanager
def _without_pool() -> Iterator[None]:
    """Have an engine that is made here keep no connections, unless the operator wants them.

    Those to a client that was killed stay open for as long as the engine lives.
    """
    if POOL in os.environ:
        yield
        return
    os.environ[POOL] = "0"
    try:
        yield
    finally:
        del os.environ[POOL]


class MooncakeEngine:
    """What one session uses of an engine: its own memory, and one peer."""

    def __init__(self, engine: Any, host: str) -> None:
        self._engine = engine
        self._host = f"[{host}]" if ":" in host else host
        self._address = 0
        self._peer = ""

    def register(self, address: int, nbytes: int) -> None:
        """Register memory; the engine refuses writes to any other."""
        if self._engine.register_memory(address, nbytes):
            raise _failed("registered no memory")
        self._address = address

    def endpoint(self) -> str:
        """Address and port of the engine."""
        return f"{self._host}:{self._engine.get_rpc_port()}"

    def connect(self, endpoint: str) -> None:
        """Keep the peer's name: the engine connects with the first write."""
        if not endpoint.rpartition(":")[2].isdigit():
            raise _failed("cannot begin: the client names no engine")
        self._peer = endpoint

    def write(self, source: int, target: int, nbytes: int) -> Callable[[], bool]:
        """Submit a write."""
        number = self._engine.transfer_submit_write(self._peer, source, target, nbytes)
        if not number or number == -1:
            raise _failed("cannot write: the client's engine cannot be reached")

        status = UNDER_WAY

        def done() -> bool:
            nonlocal status
            if status == UNDER_WAY:  # the number is not valid any more afterwards
                status = self._engine.transfer_check_status(number)
            if status not in {UNDER_WAY, DONE}:
                raise _failed("failed: the client may be gone")
            return status == DONE

        return done

    def close(self) -> None:
        """Take the memory back."""
        if self._address:
            self._engine.unregister_memory(self._address)


def _obstacle() -> str:
    if find_spec("mooncake") is None:
        return "the package mooncake is not installed (pip install 'vllm-netloader[mooncake]')"
    try:
        import mooncake.engine  # noqa: F401 - its libraries may be missing
    except ImportError as error:
        return f"mooncake cannot be imported ({error}); Debian, Ubuntu: apt install libibverbs1"
    return ""


MOONCAKE = OneSided(Library("mooncake", _obstacle, Engines().at))
