"""A process that has imported vLLM once and forks an engine for every connection.

An engine started this way is up in two seconds instead of twelve. Each connection is one engine:
what it says first is the specification, everything after that is between it and `attend`. Run as
`python fork_server.py SOCKET MEDIA`.
"""

import gc
import importlib
import inspect
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import torch

from netloader.vllm_plugin.inspect.parity.engine import attend, print_to

INHERITED = (
    "vllm.entrypoints.llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "netloader.vllm_plugin.load.loader",
)
"""What every engine imports; here it is imported once, and nothing is started."""

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

CROWD = 16


def main(path: str, media: str) -> None:
    _lend_torchvision(media)
    for module in INHERITED:
        importlib.import_module(module)
    _stay_in_process()
    _let_drafts_be_sampled()
    gc.freeze()  # an engine collects garbage several times while it starts: not all of ours
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with Listener(path, "AF_UNIX", backlog=CROWD) as listener:
        print("ready", flush=True)
        while True:
            connection = listener.accept()
            if os.fork() == 0:
                _child(connection)
            connection.close()


def _lend_torchvision(media: str) -> None:
    """Let models that look at pictures import torchvision, if it is there.

    The published one does not find its compiled half beside a torch for the CPU, and then fails
    over two operators it cannot describe. Nothing calls them here: their names are enough.
    """
    if Path(media).is_dir():
        sys.path.append(media)
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", SCHEMA)


def _stay_in_process() -> None:
    """Take away two of vLLM's precautions that cost a new interpreter each.

    It insists on spawned workers on a CPU: forked ones are as real, and have their imports. It
    looks at a model's class in a subprocess, so that no CUDA is initialised here: there is none.
    """
    library: Any = multiprocessing
    real = library.get_context
    library.get_context = lambda method=None: real("fork" if method == "spawn" else method)
    registry: Any = importlib.import_module("vllm.model_executor.models.registry")

    def call(function: Callable[[], Any]) -> Any:
        return function()

    registry._run_in_subprocess = call


def _let_drafts_be_sampled() -> None:
    """Give vLLM 0.23 an argument it forgot: its stand-in for one Triton kernel lacks the last.

    Its CPU build could have no draft model otherwise. The argument is about the precision of
    random numbers, which these tests do not draw.
    """
    kernels: Any = importlib.import_module("vllm.utils.cpu_triton_utils")
    stand_in = kernels._sample_recovered_tokens_kernel_impl
    forgotten = "USE_FP64_GUMBEL"
    if forgotten not in inspect.signature(stand_in).parameters:

        def sample(*args: Any, **given: Any) -> None:
            given.pop(forgotten)
            stand_in(*args, **given)

        kernels.sample_recovered_tokens_kernel.func = sample


def _child(connection: Connection) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an engine asks after its own children
    try:
        spec = connection.recv()
        print_to(spec["log"])
        os.environ.update(spec["env"])
        attend(connection, spec["llm"])
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
