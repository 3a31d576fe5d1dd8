"""Both ends of a transport in one process, without the protocol around them."""

import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import nn

from netloader.fsm.manifest import Segment, segments_of
from netloader.io.store.digests import digest_of
from netloader.io.store.ledger import Ledger, Report
from netloader.io.store.module import ModuleStore
from netloader.io.transports import (
    Attachments,
    Receiver,
    ReceiverSetup,
    Sender,
    SenderSetup,
    TransferError,
    named,
)
from tests.unit.io.helpers import KIB, SOON_S, connected_pair, offer_of


@dataclass
class Ending:
    """What became of one end that ran on a thread."""

    over: threading.Event = field(default_factory=threading.Event)
    result: list[int] = field(default_factory=list)
    failure: list[TransferError] = field(default_factory=list)

    def wait(self, timeout_s: float = SOON_S) -> bool:
        """Whether the end is over in time."""
        return self.over.wait(timeout_s)


class Ends:
    """A sending and a receiving end, joined by lanes as server and client join them."""

    def __init__(
        self,
        transport: str,
        source: nn.Module,
        target: nn.Module,
        *,
        lanes: int = 1,
        stall_s: float = SOON_S,
        segment_bytes: int = 64 * KIB,
        dial: Callable[[int], socket.socket] | None = None,
        report: Report = lambda done, total: None,
    ) -> None:
        self.giving, taking = ModuleStore.of(source), ModuleStore.of(target)
        self.segments = segments_of(self.giving.manifest, segment_bytes)
        digests = tuple(digest_of("blake3", self.giving.views(s)) for s in self.segments)
        self.ledger = Ledger(taking, report)
        lease = self.ledger.lease(offer_of(self.giving.manifest, digests, segment_bytes))
        self.lanes = lanes
        self.near: list[socket.socket] = []
        self.far: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()
        chosen = named(transport)
        self.attachments = (Attachments(self.giving), Attachments(taking))
        giving, filling = (attachments.to(chosen) for attachments in self.attachments)
        self.sending: Sender = giving.sender(SenderSetup("session", stall_s))
        self.receiving: Receiver = filling.receiver(
            ReceiverSetup(lease, "session", stall_s, dial or self.dial, lanes)
        )
        self._ended: list[Sender | Receiver] = []

    def open(self) -> None:
        """Open both ends, as a session does."""
        answer = self.receiving.open(self.sending.rendezvous())
        joining = self.join_receiver()
        try:
            self.sending.answered(answer)
        except TransferError:
            self.receiving.abort()
            raise
        finally:
            assert joining.wait()
        for error in joining.failure:
            raise error

    def join_receiver(self) -> Ending:
        """Have the receiving end do its part of what takes both."""

        def work() -> None:
            try:
                self.receiving.join()
            except TransferError as error:
                ending.failure.append(error)
            ending.over.set()

        ending = Ending()
        self._threads.append(threading.Thread(target=work, daemon=True))
        self._threads[-1].start()
        return ending

    def dial(self, index: int) -> socket.socket:
        """Open a lane between the two ends."""
        near, far = connected_pair()
        self.near.append(near)
        self.far.append(far)
        self.sending.attach(index, far)
        return near

    def send(self, segments: Sequence[Segment] | None = None) -> Ending:
        """Start the sending end."""
        chosen = self.segments if segments is None else segments
        return self._start(lambda: self.sending.run(chosen, self.lanes), self.sending)

    def receive(self, segments: Sequence[Segment] | None = None) -> Ending:
        """Start the receiving end."""
        chosen = self.segments if segments is None else segments
        return self._start(lambda: self.receiving.run(chosen), self.receiving)

    def _start(self, run: Callable[[], int], end: Sender | Receiver) -> Ending:
        def work() -> None:
            try:
                ending.result.append(run())
            except TransferError as error:
                ending.failure.append(error)
            ending.over.set()
            self._over.wait(SOON_S)
            end.end()

        ending = Ending()
        self._ended.append(end)
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()
        return ending

    def close(self) -> None:
        """Stop whatever still runs and close every lane."""
        self.sending.abort()
        self.receiving.abort()
        self._over.set()
        for thread in self._threads:
            thread.join(SOON_S)
        for end in (self.sending, self.receiving):
            if end not in self._ended:
                end.end()
        self._ended = [self.sending, self.receiving]
        for attachments in self.attachments:
            attachments.detach()
        for lane in (*self.near, *self.far):
            lane.close()


Join: TypeAlias = Callable[..., Ends]
"""Makes ends that are cleared away after the test: the fixture `join`."""
