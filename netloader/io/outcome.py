"""The result of `fill`: how it ended, and how each of its sessions ended."""

from collections.abc import Mapping
from dataclasses import dataclass

from netloader.config import Endpoint
from netloader.fsm.effects import Verdict
from netloader.fsm.identity import Difference
from netloader.fsm.manifest import Progress
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.fsm.terms import beside

SILENT_S = 1.0
"""A source that cost less, because it refuses connections, is asked again: it may be starting."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One session with one source. `nbytes` were verified in it, `seconds` were spent by state."""

    source: Endpoint
    reason: Reason
    detail: str
    nbytes: int
    seconds: Mapping[State, float]
    differences: tuple[Difference, ...] = ()
    elsewhere: tuple[Endpoint, ...] = ()
    """The ports of its host to which the source has referred this client."""

    @property
    def silent(self) -> bool:
        """Whether the source let time pass without an answer, as one more attempt would."""
        waited = self.reason in (Reason.UNREACHABLE, Reason.DEADLINE_PASSED)
        return waited and sum(self.seconds.values()) >= SILENT_S


def attempt_of(
    source: Endpoint, verdict: Verdict, nbytes: int, seconds: Mapping[State, float]
) -> Attempt:
    """The record of a session that is over."""
    spent, named = dict(seconds), beside(source, verdict.ports)
    return Attempt(
        source, verdict.reason, verdict.detail, nbytes, spent, verdict.differences, named
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How filling ended. `state` is DONE (every byte verified) or FALLBACK.

    `fill(..., resume=outcome)` asks only for what is not verified yet.

    The reason of a FALLBACK is NO_SOURCE, or STOPPED after `ClientOptions.cancel`, or
    DEADLINE_PASSED after `ClientOptions.timeout_s`.
    """

    state: State
    reason: Reason
    attempts: tuple[Attempt, ...]
    nbytes: int
    """Bytes that are verified now, in these attempts or in the outcome that was resumed."""
    weights_dirty: bool
    """Whether tensors may hold received bytes; after FALLBACK every one must be written again."""
    progress: Progress
    """What was verified, against which digests."""

    @property
    def ok(self) -> bool:
        """Whether the model now holds exactly the server's bytes."""
        return self.state is State.DONE

    @property
    def digest_algorithm(self) -> str:
        """What the bytes were verified with; empty if none of them were."""
        return self.progress.digest_algorithm

    @property
    def source(self) -> Endpoint | None:
        """The source that completed the model."""
        return self.attempts[-1].source if self.ok else None

    @property
    def seconds(self) -> Mapping[State, float]:
        """Seconds by state, over all attempts."""
        spent = dict.fromkeys(State, 0.0)
        for attempt in self.attempts:
            for state, seconds in attempt.seconds.items():
                spent[state] += seconds
        return spent

    def history(self) -> str:
        """One line for each attempt, to be read by people."""
        return "; ".join(f"{a.source}: {a.reason.value} ({a.detail})" for a in self.attempts)
