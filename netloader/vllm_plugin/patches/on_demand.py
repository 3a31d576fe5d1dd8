"""What each process of vLLM gets; the rest of netloader is imported where it is needed.

vLLM starts several processes one after the other, and most of them load no model: its API server,
the engine whose workers are processes, everything in an engine with another load format. The rest
costs each of them 0.3 s of start.
"""

import sys
from typing import Any

from vllm.config.load import LoadConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.v1.worker.worker_base import WorkerBase

from netloader.vllm_plugin.config.load_format import LOAD_FORMAT, is_ours, may_wait
from netloader.vllm_plugin.patches import core
from netloader.vllm_plugin.patches.once import wrap_once
from netloader.vllm_plugin.serve.harmless import harmless


class OnDemand(BaseModelLoader):
    """Makes a `NetLoader` when vLLM makes the loader of our format."""

    def __new__(cls, load_config: LoadConfig) -> BaseModelLoader:  # noqa: D102 - see above
        from netloader.vllm_plugin.load.loader import NetLoader

        return NetLoader(load_config)


def install() -> None:
    """Make the load format known, and wrap what shows that it is used; once in a process."""
    register_model_loader(LOAD_FORMAT)(OnDemand)
    wrap_once(WorkerBase, "__init__", _worker_made)
    wrap_once(EngineArgs, "create_engine_config", _configured)
    engines = sys.modules.get(core.MODULE)  # vLLM calls this in the midst of an engine's start
    core.install(getattr(engines, "EngineCore", None))


def _worker_made(make: Any) -> Any:
    """Wrap the class of each worker that vLLM makes for our load format, before it loads.

    `worker_methods.expect_warm_up` covers a class that is not wrapped by then.
    """

    def made(worker: Any, *args: Any, **kwargs: Any) -> None:
        make(worker, *args, **kwargs)
        with harmless():
            draft = getattr(worker.speculative_config, "draft_load_config", None)
            if is_ours(worker.load_config) or is_ours(draft):
                from netloader.vllm_plugin.patches.worker_methods import install

                install(type(worker))

    return made


def _configured(create: Any) -> Any:
    """Guard what takes requests in this process, once an instance on standby is configured.

    Here its config is still whole: vLLM changes it for the workers.
    """

    def created(*args: Any, **kwargs: Any) -> Any:
        config = create(*args, **kwargs)
        if may_wait(config.load_config):
            from netloader.vllm_plugin.patches.front import guard

            guard(config)
        return config

    return created
