"""Transports by name. Law: adding one is one file and one call of `register`."""

from netloader.io.failure import TransferError
from netloader.io.transports.base import Inlet, Outlet, Receiving, Sending, Transport
from netloader.io.transports.tcp import TCP

_REGISTRY: dict[str, Transport] = {}


def register(transport: Transport) -> None:
    """Make a transport known; a name that is taken is replaced (a host's own tcp, say)."""
    _REGISTRY[transport.name] = transport


def named(name: str) -> Transport:
    """The transport of a name.

    Raises:
        ValueError: no such transport; names those there are.
    """
    if name == "gloo" and name not in _REGISTRY:
        from netloader.io.transports.process_group import GLOO

        register(GLOO)
    if name not in _REGISTRY:
        known = ", ".join(sorted({*_REGISTRY, "gloo"}))
        msg = f"no transport named {name!r}; there are: {known}"
        raise ValueError(msg)
    return _REGISTRY[name]


register(TCP)

__all__ = [
    "Inlet",
    "Outlet",
    "Receiving",
    "Sending",
    "TransferError",
    "Transport",
    "named",
    "register",
]
