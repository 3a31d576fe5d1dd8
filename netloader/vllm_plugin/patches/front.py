"""Where vLLM takes requests: its engines for programs and for servers, and its HTTP API.

They are wrapped when the configuration of an instance on standby is made, which vLLM does in each
process that takes requests, before it makes the engine. So other instances, and processes that only
compute, import and wrap nothing.
"""

import sys
from collections.abc import Callable
from typing import Any, Final

from vllm import envs

from netloader.config import Secret
from netloader.errors import ConfigError
from netloader.vllm_plugin.config import waiting
from netloader.vllm_plugin.config.load_format import STANDBY
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.front.gate import Gate
from netloader.vllm_plugin.front.instance import Instance, ServedInstance
from netloader.vllm_plugin.patches import core
from netloader.vllm_plugin.patches.once import wrap_once

HELD: Final = "_netloader_instance"
"""The attribute of vLLM's engines that holds an `Instance`, or None."""
BUILD: Final = "build_app"
"""The function that makes the HTTP API. Up to 0.31 it is in `openai.api_server`."""


def guard(config: Any) -> None:
    """Wrap what takes requests in this process, if the instance of a config starts on standby.

    A second call changes nothing.

    Raises:
        ConfigError: it cannot be on standby as it is configured.
    """
    if _starts_on_standby(config.load_config):
        waiting.check(config)
        _guard()


def _starts_on_standby(load_config: Any) -> bool:
    """Whether an instance does, as far as this process can tell.

    A CONFIG_FILE that cannot be read here may be on the host of the workers. They refuse bad
    settings, and without weights `core` takes no request.
    """
    try:
        return waiting.standby_of(load_config) is not None
    except ConfigError:
        if STANDBY in load_config.model_loader_extra_config:
            raise
        return False


def _guard() -> None:
    """Wrap what takes requests in this process."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.llm_engine import LLMEngine

    core.install(EngineCore)  # in this process, or in one that is forked from it
    wrap_once(AsyncLLM, "add_request", _required)
    wrap_once(LLMEngine, "add_request", _checked)
    for name, module in [*sys.modules.items()]:
        if name.startswith("vllm.entrypoints.") and BUILD in vars(module):
            wrap_once(module, BUILD, _gated)


def _known(engine: Any, make: Callable[[Settings], Instance]) -> Any:
    """What is known of an engine; None for one that does not start on standby.

    Raises:
        ConfigError: its settings cannot be read any more, so it is not known.
    """
    held = vars(engine)
    if HELD not in held:
        settings = waiting.standby_of(engine.vllm_config.load_config)
        held[HELD] = None if settings is None else make(settings)
    return held[HELD]


def served(engine: Any) -> ServedInstance | None:
    """What is known of the engine of a server; None for one that does not start on standby."""
    found: ServedInstance | None = _known(engine, lambda settings: ServedInstance(settings, engine))
    return found


def _required(add: Any) -> Any:
    async def guarded(engine: Any, *args: Any, **kwargs: Any) -> Any:
        if (instance := served(engine)) is not None:
            await instance.require()
        return await add(engine, *args, **kwargs)

    return guarded


def _checked(add: Any) -> Any:
    def guarded(engine: Any, *args: Any, **kwargs: Any) -> Any:
        if (instance := _known(engine, Instance)) is not None:
            instance.check(engine)
        return add(engine, *args, **kwargs)

    return guarded


def _gated(build: Any) -> Any:
    """Wrap what makes an application; whether its engine waits, the gate finds out."""

    def built(args: Any, *rest: Any, **kwargs: Any) -> Any:
        app = build(args, *rest, **kwargs)
        given = getattr(args, "api_key", None) or [envs.VLLM_API_KEY]
        _close(app, [Secret(key) for key in given if key])
        return app

    return built


def _close(app: Any, keys: list[Secret]) -> None:
    """Put the gate before all that an application has, whether it is put together yet or not."""
    if app.middleware_stack is not None:
        app.middleware_stack = Gate(app.middleware_stack, served, keys)
        return
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: Gate(build(), served, keys)
