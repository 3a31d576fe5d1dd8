"""A process that has imported vllm-ascend once and forks a worker for every connection.

Importing takes 15 s and a worker 2 s. Run as `python -m tests.ascend.fork_server SOCKET`, in the
environment that `cast.environment` describes.
"""

import faulthandler
import gc
import importlib
import os
import signal
import sys
from multiprocessing.connection import Connection, Listener
from typing import Any

import tests.npu.simulator  # noqa: F401 - before torch is, which everything here imports
from netloader.vllm_plugin.inspect.parity.engine import print_to
from tests.ascend.talk import STACKS

EARLY = ("vllm.model_executor.model_loader", "tests.ascend.early")
"""What is imported before any plugin."""

INHERITED = (
    "vllm.entrypoints.llm",
    "vllm.v1.engine.core",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.deepseek_v2",
    "vllm.model_executor.models.qwen3_moe",
    "vllm_ascend.worker.worker",
    "netloader.vllm_plugin.load.loader",
    "tests.ascend.worker",
)
"""What workers import, after vLLM's plugins, whose patches come first in a worker as well."""


def main(path: str) -> None:
    """Serve until killed: first before vLLM's plugins are loaded, at `path`.early, then after."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for module in EARLY:
        importlib.import_module(module)
    if os.fork() == 0:
        _serve(f"{path}.early")
    _lend(os.environ["ASCEND_COMPILED"])
    plugins: Any = importlib.import_module("vllm.plugins")
    plugins.load_general_plugins()
    for module in INHERITED:
        importlib.import_module(module)
    _stay_in_process()
    gc.freeze()
    _serve(path)


def _serve(path: str) -> None:
    with Listener(path, "AF_UNIX", backlog=16) as listener:
        print("ready", flush=True)
        while True:
            connection = listener.accept()
            if os.fork() == 0:
                _child(connection)
            connection.close()


def _lend(folder: str) -> None:
    """Let vllm-ascend find its sleep-mode allocator, and not believe that it has its kernels."""
    importlib.import_module("vllm_ascend").__path__.append(folder)
    utils: Any = importlib.import_module("vllm_ascend.utils")
    utils._CUSTOM_OP_ENABLED = False


def _stay_in_process() -> None:
    """Look at a model's class here: vLLM's own subprocess for it takes 15 s."""
    registry: Any = importlib.import_module("vllm.model_executor.models.registry")
    registry._run_in_subprocess = lambda function: function()


def _child(connection: Connection) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        spec = connection.recv()
        print_to(spec["log"])
        faulthandler.register(STACKS, chain=True)
        connection.send(os.getpid())
        os.environ.update(spec["env"])
        actor: Any = importlib.import_module(spec["module"])
        actor.attend(connection, spec)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
