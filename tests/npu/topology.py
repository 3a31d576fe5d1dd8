"""The processes of an NPU test: servers and clients. All have ended after the test."""

import contextlib
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

from coverage import Coverage

from netloader.config import Deadlines
from netloader.io.clock import monotonic
from tests.npu.peers import NpuSpec, act_as_client, act_as_member, act_as_server
from tests.npu.trace import MOVING, Call, Trace
from tests.support.peers import PATIENCE_S, Peer, Role, Words

SHORT: Final = Deadlines(
    connect_s=5, handshake_s=10, validate_s=10, stall_s=3, transfer_base_s=60, queue_s=30
)
"""A frozen peer is known by its silence; two busy cores may be silent for a second or two."""
IMPATIENT: Final = {"HCCL_CONNECT_TIMEOUT": "3"}
"""How long HCCL waits for a peer that does not join (120 s at least on hardware), and a server with
it: nothing else ends the making of a communicator, and no second one may be begun meanwhile."""
LEAVE_S: Final = 10.0
"""What a measured process may take to write down which lines ran."""


class NpuPeer(Peer):
    """A process of one role, which hears that it is over, and is killed when it does not."""

    def __init__(self, role: Role, spec: NpuSpec) -> None:
        super().__init__(role, spec)
        self.spec = spec
        self.pid = self.process.pid or 0
        self.frozen = False

    def stop(self) -> None:
        """Freeze it; it need not hear that it is over."""
        super().stop()
        self.frozen = True

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._line.close()
        if self.spec.measured and not self.frozen:
            self.process.join(LEAVE_S)
        self.process.kill()
        self.process.join()
        self.process.close()


class Host(NpuPeer):
    """A server that is up."""

    def __init__(self, spec: NpuSpec) -> None:
        super().__init__(act_as_server, spec)
        try:
            words = self.hear()
        except BaseException:
            self.__exit__()
            raise
        self.endpoint = str(words["endpoint"])
        self.digest = str(words["digest"])
        self.bare: Words = words["bare"]

    def __enter__(self) -> Self:
        return self


class Cast:
    """Starts peers, and knows where their calls are written down."""

    def __init__(self, stack: ExitStack, trace_path: str) -> None:
        self._stack = stack
        self._measured = Coverage.current() is not None
        self.trace = Trace(trace_path)

    def server(self, **specs: Any) -> Host:
        """A server, as wished."""
        return self._stack.enter_context(Host(self._spec("server", specs)))

    def client(self, *servers: Host | str, **specs: Any) -> NpuPeer:
        """A client of some servers, tried in order; of the same model as the first."""
        sources = tuple(s if isinstance(s, str) else s.endpoint for s in servers)
        for server in servers:
            if isinstance(server, Host):
                specs.setdefault("model", server.spec.model)
                specs.setdefault("transports", server.spec.transports)
                specs.setdefault("source", server.spec.source)
        spec = replace(self._spec("client", specs), sources=sources)
        return self._stack.enter_context(NpuPeer(act_as_client, spec))

    def member(self, rank: int, meeting: Path, **specs: Any) -> NpuPeer:
        """One of the two of a group that meet at a file, without any session around it."""
        spec = self._spec(f"member {rank}", {"seed": rank, "checkpoint": str(meeting), **specs})
        return self._stack.enter_context(NpuPeer(act_as_member, spec))

    def _spec(self, host: str, specs: dict[str, Any]) -> NpuSpec:
        """Servers and clients are on hosts of their own, so both may use device 0."""
        knobs = {"SIM_HOST_ID": host, **specs.pop("knobs", {})}
        return NpuSpec(knobs=knobs, measured=self._measured, **specs)

    def operations(self, pid: int) -> list[Call]:
        """The operations of HCCL that a process has started."""
        return self.trace.of(MOVING, pid)


def served(client: NpuPeer, server: Host) -> Words:
    """The outcome of a client, which holds what the server has, in its own memory."""
    outcome = client.hear()
    assert outcome["ok"], outcome["attempts"]
    assert outcome["digest"] == server.digest
    assert outcome["in_place"]
    return outcome


def soon(good: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Ask until it is so."""
    end, pause = monotonic() + timeout_s, threading.Event()
    while not good():
        assert monotonic() < end, f"not within {timeout_s} s: {what}"
        pause.wait(0.02)
