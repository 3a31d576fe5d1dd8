"""The port of a rank, and the file that names it. `close` removes both."""

import contextlib
import errno
import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from netloader.config import Endpoint
from netloader.errors import cause
from netloader.fsm.identity import Identity
from netloader.io.listener import EVERY_ADDRESS
from netloader.io.published import PublishedModel
from netloader.io.publishing import ServerOptions
from netloader.io.server import Server, listen
from netloader.log import Logger, emit, get_logger
from netloader.vllm_plugin.config.readers import EVERY
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.identity import ranks
from netloader.vllm_plugin.log_base import LOG_BASE
from netloader.vllm_plugin.serve import address
from netloader.vllm_plugin.serve.instance import LOOK_S, Instance, part_of
from netloader.vllm_plugin.serve.port_owner import holder_of
from netloader.vllm_plugin.serve.refusal import refuse

NOT_HERE = (
    f"let LISTEN_HOST or VLLM_HOST_IP name an address of this host, or set LISTEN_HOST to "
    f"{EVERY!r}, every address, where hosts are told one that is translated (NAT)"
)
LENT_S = 3 * LOOK_S
"""How long rank 0 waits for the rank that has LISTEN_PORT in its place."""
FIRST_PORT, LAST_PORT = 1024, 65535


@dataclass(frozen=True, slots=True)
class PortChoice:
    """Where a rank is to listen, and the path of its address file."""

    host: str
    """Empty: every address."""
    port: int
    """0: a free one."""
    file: Path | None
    instance: int = 0
    """LISTEN_PORT, at which any rank of the instance is found; 0: there is none."""

    @classmethod
    def of(cls, settings: Settings, rank: int) -> Self:
        """The choice of the operator for a rank."""
        port = 0 if settings.listen_port is None else settings.listen_port + rank
        prefix = settings.output_prefix
        file = None if prefix is None else Path(f"{prefix}{rank}.txt")
        base = settings.listen_port or 0
        return cls(address.listens_at(settings.listen_host), port, file, base)


class RankPort:
    """The server of a rank, which opens with the first model, and its address file.

    Not thread-safe but for `evict`: the caller holds a lock.
    """

    def __init__(self, choice: PortChoice, options: ServerOptions) -> None:
        self._choice = choice
        self._instance: Instance | None = None
        if choice.instance:
            where = (choice.instance, choice.host, choice.port - choice.instance)
            self._instance = Instance(*where, options.logger)
            options = replace(options, siblings=self._instance.siblings)
        self._options = options
        self.server: Server | None = None
        self.told = ""
        """What other hosts connect to; empty where this host has no such address."""
        self._named = False
        """Whether the address file was written, or could not be."""
        self._file: Path | None = None

    def expect(self, identity: Identity) -> None:
        """Have the other ranks of this host know that a model is loaded here."""
        if self._instance is not None:
            self._instance.say(str(identity.role), part_of(identity))

    def forget(self, role: str) -> None:
        """Have the other ranks of this host know that a model is not here."""
        if self._instance is not None:
            self._instance.forget(role)

    def offer(self, published: PublishedModel) -> bool:
        """Offer a published model; False when the port cannot be had, which the log says."""
        server = self.open()
        if server is None:
            self.forget(str(published.entry.role))
            return False
        server.offer(published)
        self.expect(published.entry.identity)
        if not self._named:
            self._named = True
            self._write()
        return True

    def open(self) -> Server | None:
        """The server, which listens from now on; None when the port cannot be had, as `offer`."""
        if self.server is not None:
            return self.server
        choice, options = self._choice, self._options
        try:
            self.server = self._listen()
        except (OSError, RuntimeError) as error:
            _tell_failed(choice, error, options.logger)
            return None
        if self._instance is not None:
            self._instance.listens(self.server)
        endpoint = address.told(self.server.endpoint)
        if endpoint is None:
            address.tell_unknown(self.server.endpoint, options.logger)
        self.told = "" if endpoint is None else str(endpoint)
        return self.server

    def _listen(self) -> Server:
        """Listen; where another rank has LISTEN_PORT in the place of rank 0, it leaves it soon.

        Raises:
            OSError, RuntimeError: the port cannot be had.
        """
        choice, instance = self._choice, self._instance
        try:
            return listen(choice.host, choice.port, self._options)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE and choice.port == choice.instance
            if instance is None or not (taken and instance.left(LENT_S)):
                raise
        return listen(choice.host, choice.port, self._options)

    def _write(self) -> None:
        """Write the address file, if the operator wants one and there is an address."""
        file = self._choice.file if self.told else None
        if file and address.write(file, Endpoint.parse(self.told), self._options.logger):
            self._file = file

    def remove(self, published: PublishedModel) -> None:
        """Know nothing any more of a published model that has ended."""
        self.forget(str(published.entry.role))
        if self.server is not None:
            self.server.remove(published)

    def evict(self, role: str, why: str, timeout_s: float) -> bool:
        """As `Server.evict`; nothing reads where no server is."""
        server = self.server
        return server is None or server.evict(role, why, timeout_s)

    def close(self) -> None:
        """Stop serving. Runs from the garbage collector too, so it must not wait there."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                if self._file.read_text() == self.told:  # else a later instance has it now
                    _take_away(self._file, self.told)
        if self._instance is not None:
            self._instance.close()
        if self.server is not None:
            threading.Thread(target=self.server.close, name="netloader-close", daemon=True).start()
        self.server = self._file = None
        self.told, self._named = "", False


def _tell_failed(choice: PortChoice, error: Exception, logger: Logger) -> None:
    """Log why a port could not be opened."""
    fields = {
        "network.local.address": choice.host or EVERY_ADDRESS,
        "network.local.port": choice.port,
        "netloader.detail": cause(error),
        "netloader.remedy": "choose another LISTEN_PORT, or leave it out for a free one",
    }
    if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
        fields["netloader.remedy"] = NOT_HERE
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        fields["netloader.holder"] = holder_of(choice.port) or "not seen from here"
    emit(logger, "netloader.listener.failed", fields)


def _take_away(file: Path, told: str) -> None:
    """Remove the address file, unless a later instance has replaced it."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    file.rename(aside)  # one step: no other process writes to what is read and removed now
    try:
        if aside.read_text() != told:
            file.hardlink_to(aside)  # fails when there is a still later one: as it should
    finally:
        aside.unlink(missing_ok=True)


def forget_address(choice: PortChoice) -> None:
    """Remove the address file of an earlier start: its process may have been killed."""
    if choice.file is not None:
        with contextlib.suppress(OSError):
            choice.file.unlink()


def wanted(base: int | None, rank: int) -> bool:
    """Whether this rank is to open a listener: not where LISTEN_PORT + rank is no usable port.

    `base` is LISTEN_PORT, None where it is absent.
    """
    if base is None or (base >= FIRST_PORT and base + rank <= LAST_PORT):
        return True
    refuse(
        get_logger("server", LOG_BASE, **ranks.named(rank)),
        f"LISTEN_PORT {base} plus rank {rank} is outside {FIRST_PORT}-{LAST_PORT}",
        "give a port inside that range, or leave LISTEN_PORT out for a free one",
    )
    return False
