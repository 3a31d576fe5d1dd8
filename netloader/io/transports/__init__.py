"""Transports by name. Law: adding one is one file and one call of `register`."""

from netloader.io.failure import TransferError
from netloader.io.transports.base import BusyError, Inlet, Outlet, Receiver, Sender, Transport
from netloader.io.transports.tcp import TCP
from netloader.log import Logger, emit

_REGISTRY: dict[str, Transport] = {TCP.name: TCP}
_GROUPS = ("gloo", "hccl", "nccl")
"""Made when they are first asked for: they import torch.distributed."""
_SUITED = {"npu": ("hccl", "tcp", "gloo"), "cuda": ("nccl", "tcp", "gloo")}


def register(transport: Transport) -> None:
    """Make a transport known; a name that is taken is replaced (a host's own tcp, say)."""
    _REGISTRY[transport.name] = transport


def known() -> tuple[str, ...]:
    """The names of all transports there are, whether they can be used here or not."""
    return tuple(sorted({*_REGISTRY, *_GROUPS}))


def named(name: str) -> Transport:
    """The transport of a name.

    Raises:
        ValueError: no such transport (names those there are), or what it needs is missing here.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    if name not in _GROUPS:
        msg = f"no transport named {name!r}; there are: {', '.join(known())}"
        raise ValueError(msg)
    from netloader.io.transports import backends, process_group

    backend = backends.BACKENDS[name]
    if why := backend.obstacle():
        msg = f"the transport {name} cannot be used here: {why}"
        raise ValueError(msg)
    register(process_group.transport(backend))
    return _REGISTRY[name]


def suited(device_type: str, logger: Logger) -> tuple[str, ...]:
    """Names of transports for memory of a type of device, best first; logs those left out."""
    names = _SUITED.get(device_type, ("tcp", "gloo"))
    return tuple(name for name in names if _usable(name, logger))


def _usable(name: str, logger: Logger) -> bool:
    try:
        named(name)
    except ValueError as error:
        fields = {"netloader.transport": name, "netloader.detail": str(error)}
        emit(logger, "netloader.transport.left_out", fields)
        return False
    return True


__all__ = [
    "BusyError",
    "Inlet",
    "Outlet",
    "Receiver",
    "Sender",
    "TransferError",
    "Transport",
    "known",
    "named",
    "register",
    "suited",
]
