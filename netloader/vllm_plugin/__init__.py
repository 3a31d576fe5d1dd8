"""netloader as vLLM's load format `netloader`; no other package of netloader imports vllm."""

from importlib.metadata import EntryPoint, entry_points

from netloader.installed import mixed
from netloader.log import emit, get_logger, quiet_dependencies
from netloader.vllm_plugin.log_base import LOG_BASE

PLUGINS = "vllm.general_plugins"
"""The entry points that vLLM calls in each of its processes."""
RIVAL = ("vllm_ascend", "register_model_loader")
"""The entry point with which vllm-ascend registers a loader under our name, once in a process."""


def register() -> None:
    """Make the load format known; vLLM calls this in each of its processes."""
    quiet_dependencies()
    fields = _after_rival()
    from netloader.vllm_plugin.patches import on_demand

    on_demand.install()
    logger = get_logger("plugin", LOG_BASE)
    if problem := mixed():
        emit(logger, "netloader.plugin.mixed", {"netloader.detail": problem})
    emit(logger, "netloader.plugin.registered", fields)


def _after_rival() -> dict[str, str]:
    """Call the rival's entry point now, so that netloader's registration is the last one.

    The entry point, and not the module behind it: it patches vLLM before it imports that. When vLLM
    calls it again, it changes nothing. One that VLLM_PLUGINS leaves out stays out.

    Returns:
        What there is to log about it.
    """
    fields = {}
    for plugin in filter(_is_rival, entry_points(group=PLUGINS)):
        try:
            plugin.load()()
        except Exception as error:  # noqa: BLE001 - a broken rival is no reason to be absent as well
            detail = f"the loader of {plugin.module} cannot be registered: {error}"
            return {"netloader.detail": detail}
        fields = {"netloader.replaces": plugin.module}
    return fields


def _is_rival(plugin: EntryPoint) -> bool:
    from vllm import envs

    chosen = envs.VLLM_PLUGINS
    return (plugin.module, plugin.attr) == RIVAL and (chosen is None or plugin.name in chosen)
