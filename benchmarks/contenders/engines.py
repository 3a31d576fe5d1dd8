"""Engines that move bytes between registered memory: NIXL and Mooncake, without netloader.

One region in one piece at each end, the case that they are fastest at. Making the engines and
registering memory is not timed: instances do it once.
"""

import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import torch

from benchmarks.sender import HOST, Sender, Stage
from benchmarks.target import Target
from benchmarks.workload import views_of

PATIENCE_S: Final = 60.0
DRAM: Final = "DRAM"


def in_one_piece(stage: Stage) -> torch.Tensor:
    """The bytes of the model, back to back."""

    def make() -> torch.Tensor:
        views = views_of(stage.model)
        return torch.cat([torch.frombuffer(view, dtype=torch.uint8) for view in views])

    return stage.once("one piece", make)


def _importable(module: str) -> str:
    if find_spec(module.partition(".")[0]) is None:
        return f"the package {module.partition('.')[0]} is not installed"
    try:
        import_module(module)
    except Exception as error:  # noqa: BLE001 - whatever its libraries miss
        return f"{module} cannot be imported: {error}"
    return ""


class Nixl:
    """One read by a NIXL agent over UCX."""

    name: str = "NIXL (UCX)"
    kind: str = "network"
    workloads: tuple[str, ...] = ("large", "tiny")

    def __init__(self) -> None:
        self._agent: Any = None
        self._peer: Any = None

    def obstacle(self) -> str:
        """Why it cannot take part, or ''."""
        return _importable("nixl._api")

    def prepare(self, sender: Sender, target: Target) -> Callable[[], object]:
        """The returned function reads everything in one transfer."""
        metadata, address, nbytes = sender.do(nixl_offer)
        if self._agent is None:
            self._agent = _agent("receiver")
            self._peer = self._agent.add_remote_agent(metadata)
        agent, block = self._agent, target.block()
        registered = agent.register_memory([(block.data_ptr(), nbytes, 0, "")], DRAM)

        def read() -> None:
            here = agent.get_xfer_descs([(block.data_ptr(), nbytes, 0)], DRAM)
            there = agent.get_xfer_descs([(address, nbytes, 0)], DRAM)
            handle = agent.initialize_xfer("READ", here, there, self._peer, b"")
            agent.transfer(handle)
            end = time.monotonic() + PATIENCE_S
            while (state := agent.check_xfer_state(handle)) != "DONE":
                if state == "ERR" or time.monotonic() > end:
                    raise RuntimeError(f"NIXL: {state}")
            agent.release_xfer_handle(handle)
            agent.deregister_memory(registered)

        return read


def _agent(name: str) -> Any:
    from nixl._api import nixl_agent, nixl_agent_config

    return nixl_agent(name, nixl_agent_config(backends=["UCX"]))


def nixl_offer(stage: Stage) -> tuple[bytes, int, int]:
    """The metadata of the sender's agent, and where its bytes are."""
    block = in_one_piece(stage)

    def make() -> Any:
        agent = _agent("sender")
        agent.register_memory([(block.data_ptr(), block.numel(), 0, "")], DRAM)
        return agent

    agent = stage.once("nixl", make)
    return agent.get_agent_metadata(), block.data_ptr(), block.numel()


class Mooncake:
    """One read by Mooncake's transfer engine over TCP."""

    name: str = "Mooncake (tcp)"
    kind: str = "network"
    workloads: tuple[str, ...] = ("large", "tiny")

    def __init__(self) -> None:
        self._engine: Any = None

    def obstacle(self) -> str:
        """Why it cannot take part, or ''."""
        return _importable("mooncake.engine")

    def prepare(self, sender: Sender, target: Target) -> Callable[[], object]:
        """The returned function reads everything in one transfer."""
        place, address, nbytes = sender.do(mooncake_offer)
        if self._engine is None:
            self._engine = _engine()
        engine, block = self._engine, target.block()
        if engine.register_memory(block.data_ptr(), nbytes):
            raise RuntimeError("Mooncake registered no memory")

        def read() -> None:
            failed = engine.transfer_sync_read(place, block.data_ptr(), address, nbytes)
            engine.unregister_memory(block.data_ptr())
            if failed:
                raise RuntimeError("Mooncake: the read failed")

        return read


def _engine() -> Any:
    from mooncake.engine import TransferEngine

    engine = TransferEngine()
    if engine.initialize(HOST, "P2PHANDSHAKE", "tcp", ""):
        raise RuntimeError("Mooncake cannot begin")
    return engine


def mooncake_offer(stage: Stage) -> tuple[str, int, int]:
    """Where the sender's engine is, and its bytes."""
    block = in_one_piece(stage)

    def make() -> Any:
        engine = _engine()
        if engine.register_memory(block.data_ptr(), block.numel()):
            raise RuntimeError("Mooncake registered no memory")
        return engine

    engine = stage.once("mooncake", make)
    return f"{HOST}:{engine.get_rpc_port()}", block.data_ptr(), block.numel()
