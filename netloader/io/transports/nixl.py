"""The transport `nixl`: one-sided writes by NIXL agents, over UCX.

An agent lives as long as its session: its progress thread polls without a pause (NIXL 1.5 sets
`pthrDelay` to 0), which takes a core from the engine beside. Making one takes about 50 ms, and half
a second the first time.

UCX chooses the way: RDMA, shared memory or TCP; `UCX_TLS` and `UCX_NET_DEVICES` limit it (UCX FAQ).
"""

import base64
import binascii
import contextlib
import secrets
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.transports.one_sided import Library, OneSided

PLUGIN = "UCX"
HOST_MEMORY = "DRAM"
MAX_ENDPOINT_BYTES = 3 << 10
"""Of an agent's description. Without limit on its devices, UCX describes each of them."""


def _failed(what: str, why: object) -> TransferError:
    return TransferError(Reason.TRANSFER_FAILED, f"nixl {what}: {why}")


class NixlEngine:
    """One agent."""

    def __init__(self, host: str) -> None:
        del host  # UCX finds its addresses by itself
        from nixl._api import nixl_agent, nixl_agent_config

        name = f"netloader-{secrets.token_hex(8)}"
        try:
            self._agent: Any = nixl_agent(name, nixl_agent_config(backends=[PLUGIN]))
        except Exception as error:  # of its own kinds, one for each status
            raise _failed("made no agent", error) from error
        self._memory: Any = None
        self._peer: Any = None
        self._handles: dict[int, Any] = {}
        """Writes under way, by number: whoever holds a handle keeps the agent alive."""
        self._number = 0

    def register(self, address: int, nbytes: int) -> None:
        """Register memory with UCX."""
        try:
            self._memory = self._agent.register_memory([(address, nbytes, 0, "")], HOST_MEMORY)
        except Exception as error:
            raise _failed("registered no memory", error) from error

    def endpoint(self) -> str:
        """What NIXL calls an agent's metadata."""
        told = base64.b85encode(self._agent.get_agent_metadata()).decode()
        if len(told) > MAX_ENDPOINT_BYTES:
            why = f"its description has {len(told)} bytes; name its devices in UCX_NET_DEVICES"
            raise _failed("cannot begin", why)
        return told

    def connect(self, endpoint: str) -> None:
        """Take the metadata of the peer's agent."""
        try:
            self._peer = self._agent.add_remote_agent(base64.b85decode(endpoint))
        except (ValueError, binascii.Error) as error:
            raise _failed("cannot begin", "the peer describes no agent") from error
        except Exception as error:
            raise _failed("cannot connect", error) from error

    def write(self, source: int, target: int, nbytes: int) -> Callable[[], bool]:
        """Post a write."""
        try:
            here = self._agent.get_xfer_descs([(source, nbytes, 0)], HOST_MEMORY)
            there = self._agent.get_xfer_descs([(target, nbytes, 0)], HOST_MEMORY)
            handle = self._agent.initialize_xfer("WRITE", here, there, self._peer, b"")
            self._number += 1
            self._handles[self._number] = handle
            self._agent.transfer(handle)
        except Exception as error:
            raise _failed("cannot write", error) from error
        return partial(self._done, self._number)

    def _done(self, number: int) -> bool:
        if (handle := self._handles.get(number)) is None:
            return True
        try:
            state = self._agent.check_xfer_state(handle)
        except Exception as error:
            raise _failed("failed", error) from error
        if state == "ERR":
            raise _failed("failed", "the peer may be gone")
        if state == "DONE":
            self._agent.release_xfer_handle(self._handles.pop(number))
        return bool(state == "DONE")

    def close(self) -> None:
        """Give up writes that are under way, and end the agent: nothing else refers to it."""
        agent, self._agent = self._agent, None
        for handle in self._handles.values():
            with contextlib.suppress(Exception):  # it ends with the agent all the same
                agent.release_xfer_handle(handle)
        self._handles.clear()
        if self._peer is not None:
            with contextlib.suppress(Exception):
                agent.remove_remote_agent(self._peer)
        if self._memory is not None:
            with contextlib.suppress(Exception):
                agent.deregister_memory(self._memory)


def _obstacle() -> str:
    if find_spec("nixl") is None:
        return "the package nixl is not installed (pip install 'vllm-netloader[nixl]')"
    return ""


NIXL = OneSided(Library("nixl", _obstacle, NixlEngine))
