"""The address that clients can connect to: a server listens there; a log line and a file name it.

A server that listens on every address must name one of them, too. vLLM's `get_ip` answers 0.0.0.0
when it finds none, as in a namespace without a default route; then the interfaces are asked.
"""

import contextlib
import ipaddress
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
from vllm.utils.network_utils import get_ip

from netloader.config import Endpoint
from netloader.errors import cause
from netloader.io.listener import ANYWHERE
from netloader.log import Logger, emit
from netloader.vllm_plugin.config.readers import EVERY

UNKNOWN = "unknown"
"""What the log shows in place of an address."""
REMEDY = "set VLLM_HOST_IP or LISTEN_HOST to the address that other hosts reach this one at"


def told(bound: Endpoint) -> Endpoint | None:
    """The address to give to others for a socket bound to `bound`; None when there is none."""
    host = _reachable() if bound.host in ANYWHERE else bound.host
    return Endpoint(host, bound.port) if host else None


def listens_at(listen_host: str | None) -> str:
    """The address to listen at, for a LISTEN_HOST; empty: every address of this host.

    That is so where it is wanted, and where there is no address that others could be told.
    """
    if listen_host == EVERY:
        return ""
    return listen_host or _reachable() or ""


def of_this_host(listen_host: str | None) -> tuple[str, ...]:
    """The addresses at which others may reach a server with this LISTEN_HOST."""
    host = listens_at(listen_host)
    found = (host,) if host else (_reachable(), *_interfaces())
    return tuple(dict.fromkeys(each for each in found if each))


def _reachable() -> str | None:
    """An address of this host that other hosts reach, as far as can be seen from here."""
    found: str = get_ip()
    for host in (found, *_interfaces()):
        with contextlib.suppress(ValueError):  # no address at all
            if not ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
                return host
    return None


def _interfaces() -> Iterator[str]:
    """Addresses of this host's interfaces that other hosts may reach, IPv4 first."""
    addresses = [a for found in psutil.net_if_addrs().values() for a in found]
    for family in (socket.AF_INET, socket.AF_INET6):
        for host in (a.address for a in addresses if a.family == family):
            address = ipaddress.ip_address(host.partition("%")[0])
            if not (address.is_loopback or address.is_link_local):
                yield host


def tell_unknown(bound: Endpoint, logger: Logger) -> None:
    """Log that a server cannot say where it is."""
    detail = "this server listens on every address and knows none that others can connect to"
    fields = {
        "network.local.port": bound.port,
        "netloader.detail": detail,
        "netloader.remedy": REMEDY,
    }
    emit(logger, "netloader.address.unknown", fields)


def write(file: Path, endpoint: Endpoint, logger: Logger) -> bool:
    """Write `IP:Port` to a file in one step, so no reader sees a half; False when it cannot be.

    A failure is logged, and leaves nothing behind.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(descriptor, "w") as opened:
                opened.write(str(endpoint))
            Path(temporary).chmod(0o644)
            os.replace(temporary, file)  # noqa: PTH105 - the one atomic step
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        fields = {
            "netloader.detail": f"OUTPUT_PREFIX: {cause(error)}: {file}",
            "netloader.remedy": "let OUTPUT_PREFIX name a place where files can be written",
        }
        emit(logger, "netloader.address_file.failed", fields)
        return False
    return True
