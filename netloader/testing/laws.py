"""The laws of a session, by name: invariants that are checked after every step."""

from netloader.fsm import auth
from netloader.fsm.client_session import ClientSession
from netloader.fsm.effects import (
    AbortTransfer,
    AuditWeights,
    OpenTransport,
    Send,
    Settle,
    StartTransfer,
)
from netloader.fsm.messages import Description, Hello, Offer, Reject
from netloader.fsm.reasons import Reason
from netloader.fsm.server_session import ServerSession
from netloader.fsm.session import Session, Step
from netloader.fsm.states import LIVING, TERMINAL, State


class LawError(AssertionError):
    """A law was broken; the message begins with its name."""


def must(holds: bool, law: str, says: str) -> None:  # noqa: FBT001 - it is what is asserted
    """Raise LawError unless it holds; unlike `assert`, under `python -O` too."""
    if not holds:
        raise LawError(f"{law}: {says}")


def lawful(session: Session, step: Step, now: float) -> None:
    """Check one step of a session, right after it was taken at time `now`.

    Raises:
        LawError: one-verdict, absorbing, always-a-deadline, stop-what-you-started,
            clean-or-dirty, told-after-proof, under-the-proof or doubts-are-audited is broken.
    """
    _one_verdict(session, step)
    if isinstance(session, ClientSession) and any(
        isinstance(e, StartTransfer) for e in step.effects
    ):
        must(session.touched, "clean-or-dirty", "a transfer that starts may write")
    if step.before in TERMINAL:
        still = (step.after, step.effects) == (step.before, ())
        must(still, "absorbing", f"{step.before.name} answered {type(step.event).__name__}")
    if step.after is State.FALLBACK and step.before in (State.VALIDATE, State.TRANSFER):
        aborts = step.effects[-2:-1] == (AbortTransfer(),)
        must(aborts, "stop-what-you-started", f"nothing aborted on leaving {step.before.name}")
    _told_after_proof(session, step)
    _under_the_proof(session, step)
    _doubts_are_audited(session, step)
    _always_a_deadline(session, now)


def _one_verdict(session: Session, step: Step) -> None:
    ended = step.after in TERMINAL and step.before in LIVING
    settles = [effect for effect in step.effects if isinstance(effect, Settle)]
    must(len(settles) == ended, "one-verdict", "one exactly on entering a terminal state")
    if not ended:
        return
    verdict = settles[0].verdict
    must(step.effects[-1] is settles[0], "one-verdict", "it is the last effect")
    must(verdict is session.verdict, "one-verdict", "it is the session's own")
    must(verdict.state is step.after, "one-verdict", "it says where the session ended")
    must(verdict.weights_dirty == session.touched, "clean-or-dirty", "as far as it was touched")


def _told_after_proof(session: Session, step: Step) -> None:
    """A client with a token tells a server what it wants only after that one's proof."""
    if not isinstance(session, ClientSession) or session.spec.token is None:
        return
    told = any(isinstance(e, Send) and isinstance(e.message, Hello) for e in step.effects)
    challenge = session.challenge
    proved = challenge is not None and auth.challenges(challenge, session.spec.token, session.start)
    must(proved or not told, "told-after-proof", "a hello to a server that has proven nothing")


def _under_the_proof(session: Session, step: Step) -> None:
    """With a token, a session acts on and sends only messages that the proof covers."""
    believed: list[Offer | Description] = []
    if isinstance(session, ClientSession):
        token, nonce = session.spec.token, session.challenge.nonce if session.challenge else ""
        believed += [e.offer for e in step.effects if isinstance(e, OpenTransport)]
        believed += [] if session.description is None else [session.description]
        hello = session.hello
    elif isinstance(session, ServerSession) and session.hello is not None:
        unproven = session.entry.tokens[0] if session.entry.tokens else None
        token, nonce, hello = session.token or unproven, session.nonce, session.hello
        said = [effect.message for effect in step.effects if isinstance(effect, Send)]
        believed += [message for message in said if isinstance(message, Offer | Description)]
    else:
        return
    for message in believed:
        proves = token is None or auth.proves(message, token, hello, nonce)
        must(proves, "under-the-proof", f"{type(message).__name__} by {session.side}")


def _doubts_are_audited(session: Session, step: Step) -> None:
    """A server compares its weights again if a client reported other bytes, and only then."""
    word = step.event.reason if isinstance(step.event, Reject) else ""
    doubted = word == Reason.DIGEST_MISMATCH.value and step.before is State.TRANSFER
    expected = int(doubted and session.side == "server")
    audits = [effect for effect in step.effects if isinstance(effect, AuditWeights)]
    must(len(audits) == expected, "doubts-are-audited", f"{len(audits)} times on {word!r}")


def _always_a_deadline(session: Session, now: float) -> None:
    due = session.next_timeout()
    if session.state in TERMINAL:
        must(due is None, "always-a-deadline", "none after the verdict")
        return
    nbytes = session.deadline_bytes
    longest = max(limit(session.deadlines, nbytes) for limit in session.limits.values())
    soon = due is not None and due <= now + longest
    must(soon, "always-a-deadline", f"{session.state.name} may last for ever")
