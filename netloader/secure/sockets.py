"""A TLS connection that is used like a plain socket, also by two threads at once.

OpenSSL must not be called from two threads for one connection, and never waits here: the socket is
non-blocking, each call is made under a lock, and a caller that has to wait does so outside of it.
"""

import errno
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class TlsError(OSError):
    """A failure of TLS; `strerror` is a sentence for operators."""

    def __init__(self, sentence: str) -> None:
        super().__init__(errno.EPROTO, sentence)


class SecureSocket(ssl.SSLSocket):
    """What `wrap_socket` of a context of `Tls` returns.

    A time-out is how long no byte may move. `shutdown` ends the TCP connection alone: that wakes
    other threads, and nothing is ever sent or received in the clear.
    """

    _patience: float | None = None
    _ahead = b""
    """What was received to be looked at, and not taken yet."""

    @property
    def _alone(self) -> threading.Lock:
        lock: threading.Lock = self.__dict__.setdefault("_lock", threading.Lock())
        return lock

    # -- time-outs -------------------------------------------------------------------------------

    def settimeout(self, value: float | None) -> None:
        """Set how many seconds a call may wait without progress; None: for ever."""
        self._patience = value
        socket.socket.settimeout(self, 0.0)

    def gettimeout(self) -> float | None:
        """What `settimeout` was given last."""
        return self._patience

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - as of a socket
        """Wait for ever, or never."""
        self.settimeout(None if flag else 0.0)

    # -- the handshake ---------------------------------------------------------------------------

    def advance(self) -> int:
        """Go on with the handshake; what to wait for (select.POLLIN, POLLOUT), 0 when it is done.

        Never waits.

        Raises:
            TlsError: the peer and this side cannot agree, or one does not trust the other.
            OSError: the connection broke.
        """
        try:
            with self._alone:
                self.do_handshake()
        except ssl.SSLWantReadError:
            return select.POLLIN
        except ssl.SSLWantWriteError:
            return select.POLLOUT
        except ssl.SSLError as error:
            raise TlsError(sentence_of(error)) from None
        return 0

    # -- bytes -----------------------------------------------------------------------------------

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As of a socket, with MSG_PEEK and MSG_WAITALL."""
        if flags & socket.MSG_PEEK:
            while len(self._ahead) < (buflen if flags & socket.MSG_WAITALL else 1):
                more = self._waiting(lambda: self.read(buflen - len(self._ahead)))
                if not more:
                    break
                self._ahead += more
            return self._ahead[:buflen]
        if self._ahead:
            taken, self._ahead = self._ahead[:buflen], self._ahead[buflen:]
            return taken
        return self._waiting(lambda: self.read(buflen))

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """As of a socket, without flags."""
        del flags
        view = memoryview(buffer)[: nbytes or None]
        if self._ahead:
            taken = self.recv(len(view))
            view[: len(taken)] = taken
            return len(taken)
        return self._waiting(lambda: int(self.read(len(view), view)))

    def recvmsg_into(  # type: ignore[override]
        self, buffers: Sequence[memoryview], ancbufsize: int = 0, flags: int = 0
    ) -> tuple[int, list[Any], int, None]:
        """Fill all buffers, or what there is before the end of the stream."""
        del ancbufsize, flags
        total = 0
        for view in buffers:
            done = 0
            while done < len(view):
                count = self.recv_into(view[done:])
                if not count:
                    return total, [], 0, None
                done, total = done + count, total + count
        return total, [], 0, None

    def send(self, data: Any, flags: int = 0) -> int:
        """As of a socket, without flags."""
        del flags
        return self._waiting(lambda: self.write(data))

    def sendall(self, data: Any, flags: int = 0) -> None:
        """As of a socket, without flags."""
        view = memoryview(data).cast("B")
        while view:
            view = view[self.send(view, flags) :]

    def sendmsg(  # type: ignore[override]
        self, buffers: Sequence[memoryview], ancdata: object = (), flags: int = 0
    ) -> int:
        """Send all of the buffers."""
        del ancdata
        for view in buffers:
            self.sendall(view, flags)
        return sum(map(len, buffers))

    def shutdown(self, how: int) -> None:
        """End the TCP connection, in one direction or both; the layer of TLS stays."""
        socket.socket.shutdown(self, how)

    def _waiting(self, call: Callable[[], T]) -> T:
        """Make a call, and again whenever what it waits for has come.

        Raises:
            BlockingIOError: it would wait, and may not.
            TimeoutError: no byte has moved for the time-out.
            TlsError: the peer refuses this side, or what it sends is not TLS.
        """
        while True:
            try:
                with self._alone:
                    return call()
            except ssl.SSLWantReadError:
                awaited = select.POLLIN
            except ssl.SSLWantWriteError:
                awaited = select.POLLOUT
            except ssl.SSLError as error:
                raise TlsError(sentence_of(error)) from None
            except ValueError:
                raise ConnectionError(errno.ENOTCONN, os.strerror(errno.ENOTCONN)) from None
            self._await(awaited)

    def _await(self, awaited: int) -> None:
        if self._patience == 0.0:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        poll = select.poll()
        poll.register(self.fileno(), awaited)
        if not poll.poll(None if self._patience is None else self._patience * 1000):
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


EXPIRED, TOO_EARLY, OTHER_HOST = (10,), (9,), (62, 64)
UNTRUSTED = (2, 18, 19, 20, 21)
"""Codes of X509_verify_cert(3)."""
NOT_TLS = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "RECORD_LAYER_FAILURE",
        "PACKET_LENGTH_TOO_LONG",
        "HTTP_REQUEST",
        "WRONG_SSL_VERSION",
    }
)


def sentence_of(error: ssl.SSLError) -> str:
    """What went wrong, for operators of this side."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: the certificate of the peer {_flaw(error)}"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "TLS: the peer closed the connection in the handshake; look at its log"
    reason = error.reason or ""
    if reason in NOT_TLS:
        return "TLS: the peer does not speak TLS; set TLS_CERT there, or no TLS_CA here"
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "TLS: the peer has no certificate; set TLS_CERT and TLS_KEY there"
    if "ALERT" in reason:
        alert = reason.partition("ALERT_")[2].replace("_", " ").lower()
        return f"TLS: the peer refuses this side ({alert}); look at its log"
    return f"TLS: {reason.replace('_', ' ').lower() or 'failed'}"


def _flaw(error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    if code in EXPIRED:
        return "has expired; renew it there"
    if code in TOO_EARLY:
        return "is not valid yet; compare the clocks of both hosts"
    if code in OTHER_HOST:
        return f"is for another host ({error.verify_message}); name its host in the certificate"
    if code in UNTRUSTED:
        return "is from an authority that TLS_CA does not have"
    return f"cannot be used: {error.verify_message}"
