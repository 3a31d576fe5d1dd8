"""netloader as vLLM's load format `netloader`. Law: only this package imports vllm."""

import contextlib
import importlib
import importlib.util

from netloader.log import emit, get_logger, quiet_dependencies

LOG_BASE = "vllm.netloader"
"""vLLM shows what is logged below `vllm`, and nothing else."""


def register() -> None:
    """Make the load format known; vLLM calls this in each of its processes.

    vllm-ascend registers the same name when its loader module is imported. Importing that module
    first makes ours the last word, whichever plugin vLLM calls first.
    """
    quiet_dependencies()
    rival = "vllm_ascend.model_loader.netloader.netloader"
    replaced = importlib.util.find_spec("vllm_ascend") is not None
    if replaced:
        with contextlib.suppress(Exception):  # a broken rival is no reason to be absent as well
            importlib.import_module(rival)
    from vllm.model_executor.model_loader import register_model_loader

    from netloader.vllm_plugin.loader import NetLoader

    register_model_loader("netloader")(NetLoader)
    fields = {"netloader.replaces": "vllm_ascend"} if replaced else {}
    emit(get_logger("plugin", LOG_BASE), "netloader.plugin.registered", fields)
