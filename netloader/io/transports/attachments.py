"""The attachments of one store: one for each transport, made when needed."""

import threading
import weakref

from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.store.base import Store
from netloader.io.transports.base import Attachment, Transport


class Attachments:
    """What transports have made for one store. Safe to use from any thread.

    The owner calls `detach` when no session of the store is left and before its memory is freed. An
    owner that is garbage detaches too.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._made: dict[str, Attachment] = {}
        self._detached = False
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _detach_all, self._made)
        self._finalizer.atexit = False  # the process frees all of it

    def to(self, transport: Transport) -> Attachment:
        """The attachment to a transport, which is made with the first call.

        Raises:
            TransferError: the transport cannot attach, or the store was detached.
        """
        with self._lock:
            if self._detached:
                raise TransferError(Reason.TRANSFER_FAILED, "the weights are detached")
            if transport.name not in self._made:
                self._made[transport.name] = transport.attach(self._store)
            return self._made[transport.name]

    def detach(self) -> None:
        """Free all attachments. Idempotent."""
        with self._lock:
            self._detached = True
            self._finalizer()


def _detach_all(made: dict[str, Attachment]) -> None:
    while made:
        _, attachment = made.popitem()
        attachment.detach()
