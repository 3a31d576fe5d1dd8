"""The data of a published model. Each state owns the data that only it needs.

A `PublishedLife` has one owner, which feeds it one event at a time and performs the effects. Time
is an argument: seconds of any monotonic clock.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeAlias, TypeVar

from netloader.fsm import published_events as ev
from netloader.fsm.published_events import Effect, Event, ModelState, Renewal, Work
from netloader.fsm.reasons import Reason
from netloader.fsm.table import Program, Row, fire

D = TypeVar("D", bound=ev.Data)
Action: TypeAlias = Callable[["PublishedLife", Any], Iterable[Effect]]


class PublishedLife:
    """One published model with `places` places for sessions. Not thread-safe."""

    __slots__ = (
        "_effects",
        "clients",
        "data",
        "fired",
        "now",
        "places",
        "readers",
        "rest_until",
        "state",
        "work",
    )

    machine: ClassVar[Program]

    def __init__(self, places: int) -> None:
        self.places = places
        self.state = ModelState.PREPARING
        self.data: ev.Data = ev.Preparing()
        self.clients = 0
        self.readers = 0
        self.work: Work | None = None
        self.rest_until = -float("inf")
        """When a doubt may begin an audit again."""
        self.now = 0.0
        self.fired: tuple[Row[Any], ...] = ()
        """The rows that answered the last event."""
        self._effects: tuple[Effect, ...] = ()

    @property
    def quiet(self) -> bool:
        """Whether no session has a place and nothing reads the weights."""
        return not (self.clients or self.readers or self.work)

    @property
    def waiting(self) -> bool:
        """Whether clients wait for digests, or for an audit."""
        return isinstance(self.data, ev.Preparing | ev.Auditing)

    @property
    def refusal(self) -> str:
        """Why nothing is offered, for clients; empty while something is, or soon will be."""
        return self.data.why if isinstance(self.data, ev.Fenced | ev.Lost | ev.Retired) else ""

    @property
    def reason(self) -> Reason:
        """The reason of the refusal."""
        return self.data.reason if isinstance(self.data, ev.Retired) else Reason.NOT_SERVING

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of what was published last; empty while they are not known."""
        return () if isinstance(self.data, ev.Preparing | ev.Retired) else self.data.digests

    @property
    def available(self) -> frozenset[int] | None:
        """The segments that are there, of a relay that is received; else None: all."""
        return self.data.available if isinstance(self.data, ev.Receiving) else None

    @property
    def renewal(self) -> Renewal:
        """What the owner has said about newer weights, of a model that was found to be changed."""
        return self.data.renewal if isinstance(self.data, ev.Lost) else Renewal.NONE

    def step(self, event: Event, now: float) -> tuple[Effect, ...]:
        """Take one event; perform every effect of the answer, in order. `now` is in seconds.

        Raises:
            LocalProtocolError: an event that cannot happen here: the driver's bug. Nothing changes.
        """
        self.now, self.fired, self._effects = now, (), ()
        fire(self.machine, self, event)
        if self.quiet:
            fire(self.machine, self, ev.Quiet())
        return self._effects

    def collect(self, row: Row[Any], effects: tuple[Effect, ...]) -> None:
        """For the table only: take what a fired row yielded."""
        self.fired += (row,)
        self._effects += effects


def known_in(life: PublishedLife, kind: type[D]) -> D:
    """What is known in the present state."""
    if isinstance(life.data, kind):
        return life.data
    raise AssertionError(f"{life.state.name} with {life.data}")
