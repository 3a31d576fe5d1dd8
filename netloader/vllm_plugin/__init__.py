"""netloader as vLLM's load format `netloader`. Law: only this package imports vllm."""

import importlib
import importlib.util

from netloader.log import emit, get_logger, quiet_dependencies

LOG_BASE = "vllm.netloader"
"""vLLM shows what is logged below `vllm`, and nothing else."""

RIVAL = "vllm_ascend.model_loader.netloader.netloader"
"""vllm-ascend registers a loader under our name when this module is first imported."""


def register() -> None:
    """Make the load format known; vLLM calls this in each of its processes."""
    quiet_dependencies()
    fields = _after_rival()
    from vllm.model_executor.model_loader import register_model_loader

    from netloader.vllm_plugin.loader import NetLoader

    register_model_loader("netloader")(NetLoader)
    emit(get_logger("plugin", LOG_BASE), "netloader.plugin.registered", fields)


def _after_rival() -> dict[str, str]:
    """Import the rival now, so that ours is the last word whichever plugin vLLM calls first.

    Returns:
        What there is to log about it.
    """
    name = RIVAL.partition(".")[0]
    if importlib.util.find_spec(name) is None:
        return {}
    try:
        importlib.import_module(RIVAL)
    except Exception as error:  # noqa: BLE001 - a broken rival is no reason to be absent as well
        return {"netloader.detail": f"the loader of {name} cannot be imported: {error}"}
    return {"netloader.replaces": name}
