"""Serve what this rank has loaded. Law: no trouble here ever reaches the engine."""

import contextlib
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn
from vllm.utils.network_utils import get_ip

from netloader.config import Endpoint
from netloader.errors import NetloaderError
from netloader.fsm.identity import Identity
from netloader.io.listener import Listener, bind
from netloader.io.publication import Publication, in_background
from netloader.io.server import ServerOptions, publish
from netloader.log import Logger, emit, get_logger
from netloader.vllm_plugin import LOG_BASE
from netloader.vllm_plugin.layout import GoneError, RawSnapshot
from netloader.vllm_plugin.settings import Settings

FIRST_PORT, LAST_PORT = 1024, 65535
ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with, to find out what to tell others


@dataclass(frozen=True, slots=True)
class Shop:
    """What a rank needs to open a server."""

    settings: Settings
    identity: Identity
    facts: Mapping[str, str]
    rank: int

    def open(self, model: nn.Module, snapshot: RawSnapshot) -> None:
        """Serve `model`'s raw weights until the model is gone; log why, if that cannot be."""
        logger = get_logger("server", LOG_BASE)
        try:
            self._open(model, snapshot, logger)
        except Exception as error:  # noqa: BLE001 - the engine serves inference without us
            emit(logger, "netloader.driver.error", exc_info=error)

    def _open(self, model: nn.Module, snapshot: RawSnapshot, logger: Logger) -> None:
        try:
            weights, cached = snapshot.after(model)
            options = self._options(logger)
            publication = publish(weights, self.identity, options)
            publication.seal(snapshot.digests)
        except GoneError as gone:
            refuse(logger, str(gone), f"set {gone.setting} to dram, or leave it as it is")
            return
        except NetloaderError as error:
            refuse(logger, str(error), "this model cannot be served in raw layout")
            return
        self._listen(model, publication, cached, logger)

    def _options(self, logger: Logger) -> ServerOptions:
        settings = self.settings
        return ServerOptions(
            segment_bytes=settings.segment_mib << 20,
            max_clients=settings.max_clients,
            facts=self.facts,
            token=settings.token,
            deadlines=settings.deadlines,
            logger=logger,
        )

    def _listen(
        self, model: nn.Module, publication: Publication, cached: int, logger: Logger
    ) -> None:
        host = self.settings.listen_host or ""  # other hosts are the point: every address
        port = self._port()
        try:
            sock = bind(host, port)
        except OSError as error:
            fields = {
                "network.local.address": host or "every address",
                "network.local.port": port,
                "netloader.detail": error.strerror or type(error).__name__,
                "netloader.remedy": "choose another LISTEN_PORT, or leave it out for a free one",
            }
            emit(logger, "netloader.listener.failed", fields)
            return
        listener = Listener(sock, publication, self.settings.deadlines, logger)
        told = _told(listener.endpoint)
        address_file = self._write_address(told, logger)
        fields = {
            "netloader.endpoint": str(told),
            "netloader.rank": self.rank,
            "netloader.layout": "raw",
            "netloader.raw_bytes": publication.offering.manifest.nbytes,
            "netloader.cached_bytes": cached,
            "netloader.manifest.tensor_count": len(publication.offering.manifest.tensors),
            "netloader.manifest.digest": publication.offering.manifest.digest,
        }
        emit(logger, "netloader.server.offered", fields)
        close = partial(_close, listener, address_file, str(told))
        weakref.finalize(model, close)
        check = partial(_audit, publication, close, logger)
        in_background("netloader-audit", check)

    def _port(self) -> int:
        return 0 if self.settings.listen_port is None else self.settings.listen_port + self.rank

    def _write_address(self, endpoint: Endpoint, logger: Logger) -> Path | None:
        """Write `IP:Port` to `{OUTPUT_PREFIX}{RANK}.txt` in one step, so no reader sees a half."""
        target = _address_file(self.settings, self.rank)
        if target is None:
            return None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False) as file:
                file.write(str(endpoint))
            Path(file.name).chmod(0o644)
            os.replace(file.name, target)  # noqa: PTH105 - the one atomic step
        except OSError as error:
            fields = {"netloader.detail": f"OUTPUT_PREFIX: {error.strerror}: {target}"}
            emit(logger, "netloader.listener.failed", fields)
            return None
        return target


def forget_address(settings: Settings, rank: int) -> None:
    """Take away the address file of an earlier start: whoever wrote it may have been killed."""
    file = _address_file(settings, rank)
    if file is not None:
        with contextlib.suppress(OSError):
            file.unlink()


def _address_file(settings: Settings, rank: int) -> Path | None:
    prefix = settings.output_prefix
    return None if prefix is None else Path(f"{prefix}{rank}.txt")


def wanted(settings: Settings, rank: int) -> bool:
    """Whether this rank is to open a listener; a port out of range means no, as the guide says."""
    base = settings.listen_port
    if base is None or (base >= FIRST_PORT and base + rank <= LAST_PORT):
        return True
    refuse(
        get_logger("server", LOG_BASE),
        f"LISTEN_PORT {base} plus rank {rank} is outside {FIRST_PORT}-{LAST_PORT}",
        "give a port inside that range, or leave LISTEN_PORT out for a free one",
    )
    return False


def refuse(logger: Logger, why: str, remedy: str) -> None:
    """Say why no listener is opened, and what would help."""
    fields = {"netloader.detail": why, "netloader.remedy": remedy}
    emit(logger, "netloader.server.refused", fields)


def _told(endpoint: Endpoint) -> Endpoint:
    """The address to give to others."""
    return Endpoint(get_ip(), endpoint.port) if endpoint.host in ANYWHERE else endpoint


def _audit(publication: Publication, close: Callable[[], None], logger: Logger) -> None:
    """Check, after the engine is up, that post-processing left every byte as it was digested."""
    publication.audit()
    if publication.withdrawn:
        fields = {"netloader.detail": publication.withdrawn}
        emit(logger, "netloader.server.withdrawn", fields)
        close()


def _close(listener: Listener, address_file: Path | None, told: str) -> None:
    """Stop serving. Runs from the garbage collector too, so it must not wait there."""
    if address_file is not None:
        with contextlib.suppress(OSError):
            if address_file.read_text() == told:  # else a later instance has it now
                address_file.unlink()
    threading.Thread(target=listener.close, name="netloader-close", daemon=True).start()
