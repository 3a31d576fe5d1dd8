"""The laws of a session, by name. Law of this file: a law says what holds, never how."""

from netloader.fsm.effects import AbortTransfer, Settle
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
        LawError: one-verdict, absorbing, always-a-deadline, stop-what-you-started or
            clean-or-dirty is broken.
    """
    _one_verdict(session, step)
    if step.before in TERMINAL:
        still = (step.after, step.effects) == (step.before, ())
        must(still, "absorbing", f"{step.before.name} answered {type(step.event).__name__}")
    if step.after is State.FALLBACK and step.before in (State.VALIDATE, State.TRANSFER):
        aborts = step.effects[-2:-1] == (AbortTransfer(),)
        must(aborts, "stop-what-you-started", f"nothing aborted on leaving {step.before.name}")
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


def _always_a_deadline(session: Session, now: float) -> None:
    due = session.next_timeout()
    if session.state in TERMINAL:
        must(due is None, "always-a-deadline", "none after the verdict")
        return
    longest = max(limit(session.deadlines, session.nbytes) for limit in session.limits.values())
    soon = due is not None and due <= now + longest
    must(soon, "always-a-deadline", f"{session.state.name} may last for ever")
