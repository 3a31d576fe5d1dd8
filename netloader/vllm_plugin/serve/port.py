"""The port of a worker process, and the file that names it. Law: both are gone after `close`."""

import contextlib
import errno
import os
import threading
from pathlib import Path

from netloader.io.catalog import Catalog
from netloader.io.listener import EVERY_ADDRESS, Listener, bind
from netloader.log import Logger, emit, get_logger
from netloader.vllm_plugin import LOG_BASE
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.identity import ranks
from netloader.vllm_plugin.serve import address
from netloader.vllm_plugin.serve.port_owner import holder_of
from netloader.vllm_plugin.serve.refusal import refuse

FIRST_PORT, LAST_PORT = 1024, 65535


class OpenPort:
    """A listener on the port of a rank, and its address file.

    Raises:
        OSError: the port is busy, or no descriptor is left.
        RuntimeError: no thread is left.
    """

    def __init__(self, settings: Settings, rank: int, catalog: Catalog, logger: Logger) -> None:
        host = settings.listen_host or ""  # other hosts are the point: every address
        sock = bind(host, port_of(settings, rank))
        self.listener = Listener(sock, catalog, settings.deadlines, logger)
        self.told = address.told(self.listener.endpoint)
        """What other hosts connect to; None where this host has no such address."""
        self._file: Path | None = None
        if self.told is None:
            address.tell_unknown(self.listener.endpoint, logger)
        elif (file := address_file(settings, rank)) and address.write(file, self.told, logger):
            self._file = file

    def close(self) -> None:
        """Stop serving. Runs from the garbage collector too, so it must not wait there."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                if self._file.read_text() == str(self.told):  # else a later instance has it now
                    _take_away(self._file, str(self.told))
        close = self.listener.close
        threading.Thread(target=close, name="netloader-close", daemon=True).start()


def tell_failed(settings: Settings, rank: int, error: Exception, logger: Logger) -> None:
    """Log why a port could not be opened."""
    port = port_of(settings, rank)
    fields = {
        "network.local.address": settings.listen_host or EVERY_ADDRESS,
        "network.local.port": port,
        "netloader.detail": getattr(error, "strerror", None) or str(error),
        "netloader.remedy": "choose another LISTEN_PORT, or leave it out for a free one",
    }
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        fields["netloader.holder"] = holder_of(port) or "not seen from here"
    emit(logger, "netloader.listener.failed", fields)


def port_of(settings: Settings, rank: int) -> int:
    """The port to listen at; 0 takes a free one."""
    return 0 if settings.listen_port is None else settings.listen_port + rank


def in_range(settings: Settings, rank: int) -> bool:
    """Whether a rank's port can be listened at."""
    base = settings.listen_port
    return base is None or (base >= FIRST_PORT and base + rank <= LAST_PORT)


def address_file(settings: Settings, rank: int) -> Path | None:
    """Where a rank writes its address, if it does."""
    prefix = settings.output_prefix
    return None if prefix is None else Path(f"{prefix}{rank}.txt")


def _take_away(file: Path, told: str) -> None:
    """Remove our address file; one that a later instance has put in its place meanwhile stays."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    file.rename(aside)  # one step: what is read and removed now is nobody else's any more
    try:
        if aside.read_text() != told:
            file.hardlink_to(aside)  # fails when there is a still later one: as it should
    finally:
        aside.unlink(missing_ok=True)


def forget_address(settings: Settings, rank: int) -> None:
    """Remove the address file of an earlier start: its process may have been killed."""
    file = address_file(settings, rank)
    if file is not None:
        with contextlib.suppress(OSError):
            file.unlink()


def wanted(settings: Settings, rank: int) -> bool:
    """Whether this rank is to open a listener; a port out of range means no, as the guide says."""
    if in_range(settings, rank):
        return True
    refuse(
        get_logger("server", LOG_BASE, **ranks.named(rank)),
        f"LISTEN_PORT {settings.listen_port} plus rank {rank} is outside {FIRST_PORT}-{LAST_PORT}",
        "give a port inside that range, or leave LISTEN_PORT out for a free one",
    )
    return False
