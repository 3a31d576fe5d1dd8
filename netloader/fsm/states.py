"""The six states that both sides share. The tables say what happens in each."""

from enum import Enum


class State(Enum):
    """Where a session is; the same six names for server and client."""

    LISTEN = "listen"
    """Waiting for the connection to be up."""
    HANDSHAKE = "handshake"
    """With a token the proofs of both sides; the client's hello; versions are compared."""
    VALIDATE = "validate"
    """Same model, same partition, same tensors; the transport is made ready."""
    TRANSFER = "transfer"
    """Bytes move; the control connection is the failure detector."""
    DONE = "done"
    """Everything asked for was sent, received and verified."""
    FALLBACK = "fallback"
    """This session is over without success; a client takes its next option."""


ENDS = (State.DONE, State.FALLBACK)
TERMINAL = frozenset(ENDS)
LIVING = tuple(state for state in State if state not in TERMINAL)
INITIAL = State.LISTEN
