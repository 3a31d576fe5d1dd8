"""Ends of a transport that is not repeatable: `run` may be called once."""

from collections.abc import Mapping, Sequence
from socket import socket

from netloader.fsm.manifest import Segment
from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.transports.base import (
    Attachment,
    Receiver,
    ReceiverSetup,
    Sender,
    SenderSetup,
)


class _Once:
    """Counts the runs of one end; used on its worker thread."""

    def __init__(self) -> None:
        self._begun = False

    def begin(self) -> None:
        """Note a run.

        Raises:
            TransferError: it is the second one.
        """
        if self._begun:
            detail = "this transport carries one request in a session"
            raise TransferError(Reason.TRANSFER_FAILED, detail)
        self._begun = True


class OneRunSender:
    """A sender that runs once."""

    def __init__(self, sender: Sender) -> None:
        self._once = _Once()
        self._sender = sender

    def rendezvous(self) -> Mapping[str, str]:
        """As the sender's own."""
        return self._sender.rendezvous()

    def answered(self, answer: Mapping[str, str]) -> None:
        """As the sender's own."""
        self._sender.answered(answer)

    def attach(self, index: int, lane: socket) -> None:
        """As the sender's own."""
        self._sender.attach(index, lane)

    def run(self, segments: Sequence[Segment], lanes: int) -> int:
        """As the sender's own, once."""
        self._once.begin()
        return self._sender.run(segments, lanes)

    def abort(self) -> None:
        """As the sender's own."""
        self._sender.abort()

    def end(self) -> None:
        """As the sender's own."""
        self._sender.end()


class OneRunReceiver:
    """A receiver that runs once."""

    def __init__(self, receiver: Receiver) -> None:
        self._once = _Once()
        self._receiver = receiver

    def open(self, rendezvous: Mapping[str, str]) -> Mapping[str, str]:
        """As the receiver's own."""
        return self._receiver.open(rendezvous)

    def run(self, segments: Sequence[Segment]) -> int:
        """As the receiver's own, once."""
        self._once.begin()
        return self._receiver.run(segments)

    def abort(self) -> None:
        """As the receiver's own."""
        self._receiver.abort()

    def end(self) -> None:
        """As the receiver's own."""
        self._receiver.end()


class OneRunAttachment:
    """An attachment whose ends run once."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment

    def sender(self, setup: SenderSetup) -> Sender:
        """Make the server's end for one session."""
        return OneRunSender(self._attachment.sender(setup))

    def receiver(self, setup: ReceiverSetup) -> Receiver:
        """Make the client's end for one session."""
        return OneRunReceiver(self._attachment.receiver(setup))

    def detach(self) -> None:
        """As the attachment's own."""
        self._attachment.detach()
