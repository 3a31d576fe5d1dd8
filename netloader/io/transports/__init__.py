"""Transports by name. Adding one is one file and one call of `register`.

`TRANSPORTS` holds those of this process: the built-in ones, those of installed packages, which name
them as entry points of the group `netloader.transports`, and those that a host has registered.
"""

from collections.abc import Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points

from netloader.io.failure import TransferError
from netloader.io.transports.attachments import Attachments
from netloader.io.transports.base import (
    Attachment,
    BusyError,
    Capabilities,
    Direction,
    Receiver,
    ReceiverSetup,
    Sender,
    SenderSetup,
    Transport,
)
from netloader.io.transports.registry import Load, Registry
from netloader.io.transports.shm import SHM
from netloader.io.transports.tcp import TCP

ENTRY_POINTS = "netloader.transports"


def _group(name: str) -> Transport:
    from netloader.io.transports import process_group  # it imports torch.distributed

    return process_group.named(name)


def _nixl() -> Transport:
    from netloader.io.transports.nixl import NIXL

    return NIXL


def _mooncake() -> Transport:
    from netloader.io.transports.mooncake import MOONCAKE

    return MOONCAKE


def _installed() -> Mapping[str, Load]:
    return {found.name: partial(_imported, found) for found in entry_points(group=ENTRY_POINTS)}


def _imported(found: EntryPoint) -> Transport:
    try:
        transport = found.load()
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"the transport {found.name} cannot be imported: {why}") from error
    if not isinstance(transport, Transport) or transport.name != found.name:
        raise ValueError(f"the entry point {found.value} is no transport named {found.name}")
    return transport


TRANSPORTS = Registry(
    {
        "hccl": partial(_group, "hccl"),
        "nccl": partial(_group, "nccl"),
        "tcp": lambda: TCP,
        "shm": lambda: SHM,
        "gloo": partial(_group, "gloo"),
        "nixl": _nixl,
        "mooncake": _mooncake,
    },
    _installed,
)
register = TRANSPORTS.register
known = TRANSPORTS.known
named = TRANSPORTS.named
suited = TRANSPORTS.suited

__all__ = [
    "TRANSPORTS",
    "Attachment",
    "Attachments",
    "BusyError",
    "Capabilities",
    "Direction",
    "Receiver",
    "ReceiverSetup",
    "Registry",
    "Sender",
    "SenderSetup",
    "TransferError",
    "Transport",
    "known",
    "named",
    "register",
    "suited",
]
