"""The reasons for the end of a session: one word each, on the wire, in logs and in docs."""

from enum import Enum


class Reason(Enum):
    """Why a session ended; the value is the word used everywhere."""

    VERIFIED = "verified"
    NOT_NEEDED = "not_needed"
    DESCRIBED = "described"
    UNREACHABLE = "unreachable"
    CONNECTION_LOST = "connection_lost"
    DEADLINE_PASSED = "deadline_passed"
    IDLE = "idle"
    PROTOCOL_VIOLATION = "protocol_violation"
    UNSUPPORTED_VERSION = "unsupported_version"
    AUTH_REQUIRED = "auth_required"
    AUTH_FAILED = "auth_failed"
    TLS_REQUIRED = "tls_required"
    REFERRED = "referred"
    IDENTITY_MISMATCH = "identity_mismatch"
    MANIFEST_MISMATCH = "manifest_mismatch"
    NOTHING_IN_COMMON = "nothing_in_common"
    BUSY = "busy"
    NOT_READY = "not_ready"
    NOT_SERVING = "not_serving"
    NOT_AVAILABLE = "not_available"
    DIGEST_MISMATCH = "digest_mismatch"
    UNKNOWN_SESSION = "unknown_session"
    TRANSFER_FAILED = "transfer_failed"
    TRANSFER_STALLED = "transfer_stalled"
    DISAGREEMENT = "disagreement"
    STOPPED = "stopped"
    NO_SOURCE = "no_source"
    REFUSED = "refused"

    @property
    def sentence(self) -> str:
        """What the word means, for people."""
        return SENTENCES[self]

    @classmethod
    def of(cls, word: str) -> "Reason":
        """The reason of a word from the wire; an unknown word (a newer peer) is REFUSED."""
        try:
            return cls(word)
        except ValueError:
            return cls.REFUSED


SENTENCES: dict[Reason, str] = {
    Reason.VERIFIED: "Every byte asked for arrived and matched its digest.",
    Reason.NOT_NEEDED: "All segments came from other sources; this one was asked for none.",
    Reason.DESCRIBED: "The server described what it resolved; no weights were asked for.",
    Reason.UNREACHABLE: "No connection to the source could be made in time.",
    Reason.CONNECTION_LOST: "The control connection closed before the session was over.",
    Reason.DEADLINE_PASSED: "A phase took longer than its deadline.",
    Reason.IDLE: "The client asked for nothing more and did not finish, for too long.",
    Reason.PROTOCOL_VIOLATION: "The peer said something the protocol does not allow at this point.",
    Reason.UNSUPPORTED_VERSION: "The two sides share no protocol version.",
    Reason.AUTH_REQUIRED: "The server asks for a token and the client has none.",
    Reason.AUTH_FAILED: "The peer could not prove that it knows the token.",
    Reason.TLS_REQUIRED: "The server takes TLS connections only, and the client has no TLS.",
    Reason.REFERRED: "Another port of the server's host has what was asked for; it is asked next.",
    Reason.IDENTITY_MISMATCH: "Model, partition or another identity field differs.",
    Reason.MANIFEST_MISMATCH: "The tensors of the two models are not the same.",
    Reason.NOTHING_IN_COMMON: "The two sides share no layout, transport or digest algorithm.",
    Reason.BUSY: "The server already feeds as many clients as it may; try again later.",
    Reason.NOT_READY: "The server has not finished preparing its weights; try again later.",
    Reason.NOT_SERVING: "The server has withdrawn its weights.",
    Reason.NOT_AVAILABLE: "A segment was asked for that the server does not have yet.",
    Reason.DIGEST_MISMATCH: "Bytes arrived that do not match the digest the server published.",
    Reason.UNKNOWN_SESSION: "A data connection reached a server that does not know the session.",
    Reason.TRANSFER_FAILED: "The transport failed while bytes were moving.",
    Reason.TRANSFER_STALLED: "No byte moved for longer than the stall deadline.",
    Reason.DISAGREEMENT: "The two sides count different bytes at the end of the transfer.",
    Reason.STOPPED: "This side was asked to stop.",
    Reason.NO_SOURCE: "No source could deliver; the ordinary loader takes over.",
    Reason.REFUSED: "The peer refused for a reason this version does not know.",
}

RETRYABLE = frozenset({Reason.BUSY, Reason.NOT_READY})
"""Refusals after which the same source may be asked again."""
