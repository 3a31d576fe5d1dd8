"""A process in which no plugin has been loaded: whose loader is behind `netloader`, and when?"""

import importlib
from multiprocessing.connection import Connection
from typing import Any

from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader

from tests.ascend.talk import converse


class Registry:
    """The loaders of this process, and the ways in which they come to be registered."""

    def ours(self) -> None:
        """Call our entry point."""
        importlib.import_module("netloader.vllm_plugin").register()

    def theirs(self) -> None:
        """Call vllm-ascend's entry point."""
        importlib.import_module("vllm_ascend").register_model_loader()

    def their_module(self) -> None:
        """Import vllm-ascend's loader without its entry point."""
        importlib.import_module("vllm_ascend.model_loader.netloader.netloader")

    def their_function(self) -> None:
        """Call what their entry point calls."""
        importlib.import_module("vllm_ascend.model_loader.netloader").register_netloader()

    def plugins(self) -> None:
        """Load all plugins, as each process of vLLM does."""
        importlib.import_module("vllm.plugins").load_general_plugins()

    def winner(self) -> str:
        """The module of the loader that vLLM would use."""
        config: Any = LoadConfig(load_format="netloader", model_loader_extra_config={})
        return type(get_model_loader(config)).__module__


def attend(connection: Connection, _spec: object) -> None:
    """Be a registry until the other end hangs up."""
    converse(connection, Registry)
