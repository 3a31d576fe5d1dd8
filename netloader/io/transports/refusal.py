"""The answer to a data connection that no session waits for.

Behind a load balancer the data connections of a client may reach another replica than its control
connection. That replica has no such session: it answers with one frame and closes;
without the answer a client would only see that its connection was closed early.
"""

import contextlib
import socket

from netloader.fsm.messages import Reject
from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.forks import INHERITANCE
from netloader.wire.frames import MAGIC, Decoder, encode

ANSWER = encode(Reject(Reason.UNKNOWN_SESSION.value, Reason.UNKNOWN_SESSION.sentence))
"""The same bytes for every id, so guessing ids reveals nothing."""
LONGEST = 1024
"""Bytes of an answer, also of a later version that says more."""
DETAILS = {
    Reason.UNKNOWN_SESSION: (
        "a data connection reached a server that does not know the session of the control "
        "connection; if a load balancer is in front of the source, name the servers themselves"
    ),
    Reason.BUSY: "the server was out of file descriptors when a data connection came",
}
"""What a refusal means to the client. The words of the peer are not shown."""


def refuse(lane: socket.socket) -> None:
    """Answer on a data connection that belongs to no session, and close it."""
    lane.setblocking(False)
    with contextlib.suppress(OSError):
        lane.send(ANSWER)
    INHERITANCE.close(lane)


def check(lane: socket.socket, due: int) -> None:
    """Wait for the first bytes of a data connection, and see whether they are a refusal.

    Nothing is taken out of the socket, so bytes of weights stay where they are. They pass for a
    refusal only if they are exactly one. `due` is how many bytes of weights are to come: no more
    are waited for, because the peer keeps the connection open behind them.

    Raises:
        TransferError: UNKNOWN_SESSION or BUSY.
        OSError: no byte came within the time-out of the socket.
    """
    seen = lane.recv(LONGEST, socket.MSG_PEEK)
    if seen[: len(MAGIC)] == MAGIC[: len(seen)] and _refusal(seen) is None:
        most = min(LONGEST, due)  # it came in parts; a refusal ends with the connection
        seen = lane.recv(most, socket.MSG_PEEK | socket.MSG_WAITALL)
    if (reason := _refusal(seen)) is not None:
        raise TransferError(reason, DETAILS[reason])


def _refusal(data: bytes) -> Reason | None:
    """Why a data connection was refused, if these bytes are such an answer and nothing else."""
    decoder = Decoder(LONGEST)
    heard = decoder.feed(data)
    reasons = [Reason.of(said.reason) for said in heard if isinstance(said, Reject)]
    if len(heard) == len(reasons) == 1 and reasons[0] in DETAILS and not decoder.buffered:
        return reasons[0]
    return None
