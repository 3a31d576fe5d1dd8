"""TLS for all connections of a side. The peer is always verified, and TLS 1.3 is the least.

The files are read again when they have changed: see `files`.
"""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from netloader.secure.files import WatchedFiles
from netloader.secure.sockets import SecureSocket


class _Contexts(NamedTuple):
    client: ssl.SSLContext
    server: ssl.SSLContext | None


class Tls:
    """Certificates in files, as PEM. Thread-safe; the files are looked at for each connection.

    `certificate` is this side's, with the chain up to the authority; a server needs one. `key` is
    its private key; None: it is in the file of the certificate. `ca` has the authorities that this
    side trusts: of a server, and with it a server asks its clients for a certificate, too. Without
    it a client trusts those of the system, and a server asks for none.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file has no certificate or key that can be used, or they do not fit.
    """

    def __init__(
        self,
        certificate: Path | str | None = None,
        key: Path | str | None = None,
        ca: Path | str | None = None,
    ) -> None:
        self._certificate, self._key, self._ca = certificate, key, ca
        if key is not None and certificate is None:
            raise ValueError("there is a key, and no certificate; give both")
        paths = [Path(path) for path in (certificate, key, ca) if path is not None]
        self._files = WatchedFiles(paths, self._read)

    def __repr__(self) -> str:
        paths = (self._certificate, self._key, self._ca)
        return f"Tls({', '.join(repr(path and str(path)) for path in paths)})"

    @property
    def serves(self) -> bool:
        """Whether there is a certificate, as a server needs one."""
        return self._certificate is not None

    def client(self) -> ssl.SSLContext:
        """For connections to a server, whose certificate must name the host that is dialled."""
        return self._files.value.client

    def server(self) -> ssl.SSLContext:
        """For connections from clients.

        Raises:
            ValueError: there is no certificate.
        """
        context = self._files.value.server
        if context is None:
            raise ValueError("a server needs a certificate")
        return context

    def _read(self) -> _Contexts:
        client = self._context(ssl.PROTOCOL_TLS_CLIENT)
        if self._ca is None:
            client.load_default_certs(ssl.Purpose.SERVER_AUTH)
        server = None
        if self._certificate is not None:
            server = self._context(ssl.PROTOCOL_TLS_SERVER)
            server.num_tickets = 0  # sessions are not resumed; a lane is written to by one side
            if self._ca is not None:
                server.verify_mode = ssl.CERT_REQUIRED
        return _Contexts(client, server)

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.sslsocket_class = SecureSocket
        if self._ca is not None:
            _load(f"the authorities in {self._ca}", lambda: context.load_verify_locations(self._ca))
        if self._certificate is not None:
            chain, key = self._certificate, self._key
            what = f"the certificate {chain} with its key"
            # a password that is asked for would be asked of a terminal
            _load(what, lambda: context.load_cert_chain(chain, key, password=lambda: ""))
        return context


def _load(what: str, load: Callable[[], None]) -> None:
    try:
        load()
    except ssl.SSLError as error:
        why = (error.reason or "not PEM").replace("_", " ").lower()
    except OSError as error:
        raise OSError(error.errno, f"{what} cannot be read: {error.strerror}") from None
    else:
        return
    raise ValueError(f"{what} cannot be used: {why}; give PEM files, the key without a password")
