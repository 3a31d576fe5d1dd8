"""netloader: start an LLM serving instance from the weights of one that already runs.

`serve` offers a model's weights, `fill` takes them; the names in `__all__` are the public ones.
Importing this package loads none of them: each is loaded when it is first used, so a program that
only looks whether netloader is there does not pay for torch. `netloader.io` has the drivers,
`netloader.fsm` the protocol machines, and `netloader.vllm_plugin` makes them vLLM's load format
`netloader`.
"""

import importlib

TYPE_CHECKING = False  # as type checkers know it; `typing` is most of what the import would cost
if TYPE_CHECKING:
    from netloader import errors
    from netloader.config import Deadlines, Endpoint, Secret
    from netloader.errors import (
        ConfigError,
        LocalProtocolError,
        NetloaderError,
        UnsafeError,
        WeightsError,
    )
    from netloader.fsm.identity import Difference, Identity, Role
    from netloader.fsm.reasons import Reason
    from netloader.fsm.states import State
    from netloader.io.client import ClientOptions, fill
    from netloader.io.outcome import Attempt, Outcome
    from netloader.io.publishing import ServerOptions
    from netloader.io.server import Server, listen, serve
    from netloader.io.store.files import FileStore
    from netloader.io.store.memory import HostStore
    from netloader.io.store.module import ModuleStore

__version__ = "0.1.0"

__all__ = [
    "Attempt",
    "ClientOptions",
    "ConfigError",
    "Deadlines",
    "Difference",
    "Endpoint",
    "FileStore",
    "HostStore",
    "Identity",
    "LocalProtocolError",
    "ModuleStore",
    "NetloaderError",
    "Outcome",
    "Reason",
    "Role",
    "Secret",
    "Server",
    "ServerOptions",
    "State",
    "UnsafeError",
    "WeightsError",
    "errors",
    "fill",
    "listen",
    "serve",
]

_WHERE = {
    "netloader.config": ("Deadlines", "Endpoint", "Secret"),
    "netloader.errors": (
        "ConfigError",
        "LocalProtocolError",
        "NetloaderError",
        "UnsafeError",
        "WeightsError",
    ),
    "netloader.fsm.identity": ("Difference", "Identity", "Role"),
    "netloader.fsm.reasons": ("Reason",),
    "netloader.fsm.states": ("State",),
    "netloader.io.client": ("ClientOptions", "fill"),
    "netloader.io.outcome": ("Attempt", "Outcome"),
    "netloader.io.publishing": ("ServerOptions",),
    "netloader.io.server": ("Server", "listen", "serve"),
    "netloader.io.store.files": ("FileStore",),
    "netloader.io.store.memory": ("HostStore",),
    "netloader.io.store.module": ("ModuleStore",),
}


if not TYPE_CHECKING:  # with it, type checkers would accept any name

    def __getattr__(name: str) -> object:
        """Load a public name when it is first used (PEP 562)."""
        if name == "errors":
            return importlib.import_module("netloader.errors")
        for module, names in _WHERE.items():
            if name in names:
                value = getattr(importlib.import_module(module), name)
                globals()[name] = value
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
