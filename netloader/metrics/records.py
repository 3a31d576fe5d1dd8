"""What a log record changes in which series. Pure; every label has a bounded set of values."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

from netloader.fsm.identity import REMEDIES, Role
from netloader.fsm.reasons import Reason
from netloader.fsm.states import TERMINAL, State
from netloader.metrics import catalogue as c

Fields: TypeAlias = Mapping[str, object]

REASONS: Final = frozenset(reason.value for reason in Reason)
SIDES: Final = frozenset(("client", "server"))
PHASES: Final = frozenset(state.value for state in State if state not in TERMINAL)
OUTCOMES: Final = frozenset(state.value for state in State)
ROLES: Final = frozenset(("", *(role.value for role in Role)))
MOST_SOURCES: Final = 64
"""Sources with a label of their own; those that come later share one."""
MOST_DIFFERENCES: Final = 8

PROBLEM_EVENTS: Final = frozenset(
    (
        "netloader.background.failed",
        "netloader.driver.error",
        "netloader.listener.exhausted",
        "netloader.listener.failed",
        "netloader.relay.failed",
        "netloader.server.refused",
        "netloader.server.withdrawn",
        "netloader.standby.late",
        "netloader.weights.doubted",
    )
)


class Change(Enum):
    """What happens to a value."""

    ADD = "add"
    SET = "set"
    OBSERVE = "observe"
    ONLY = "only"
    """Set it, and drop every other one of its series."""


@dataclass(frozen=True, slots=True)
class Update:
    """One change of one series."""

    series: str
    labels: tuple[str, ...] = ()
    value: float = 1.0
    change: Change = Change.ADD


NOT_QUEUED: Final = Update(c.QUEUED, (), 0.0, Change.SET)


class Sources:
    """The sources that have a label of their own: the first ones that are dialled. One owner."""

    def __init__(self) -> None:
        self._known: dict[str, None] = {}

    def label(self, source: str) -> str:
        """The label of a source."""
        if source in self._known or len(self._known) < MOST_SOURCES:
            self._known[source] = None
            return source
        return c.OTHER


class Sessions:
    """How many sessions of each side are open. One owner."""

    def __init__(self) -> None:
        self._open = dict.fromkeys((*SIDES, c.OTHER), 0)

    def begun(self, fields: Fields) -> Iterator[Update]:
        """One more session is open."""
        self._open[_side(fields)] += 1
        yield Update(c.OPEN, (_side(fields),))
        yield from _in_phase(fields, "netloader.state", 1.0)

    def ended(self, fields: Fields) -> Iterator[Update]:
        """A session is over; with the last one of a side, nothing moves."""
        side = _side(fields)
        self._open[side] -= 1
        yield Update(c.OPEN, (side,), -1.0)
        if not self._open[side]:
            yield Update(c.RATE, (side,), 0.0, Change.SET)


class History:
    """What one process's records have said so far, as far as later ones need it. One owner."""

    def __init__(self) -> None:
        self.sources = Sources()
        self.sessions = Sessions()


def updates(fields: Fields, history: History) -> Iterator[Update]:
    """What a record changes."""
    event = str(fields.get("event"))
    if (told := BY_EVENT.get(event)) is not None:
        yield from told(fields)
    if (of_source := BY_SOURCE.get(event)) is not None:
        yield from of_source(fields, history.sources)
    if (of_session := BY_SESSION.get(event)) is not None:
        yield from of_session(history.sessions, fields)
    if event in PROBLEM_EVENTS:
        yield Update(c.PROBLEMS, (event,))


def _side(fields: Fields) -> str:
    return _among(fields, "netloader.side", SIDES)


def _role(fields: Fields) -> str:
    return _among(fields, "netloader.role", ROLES, "")


def _in_phase(fields: Fields, key: str, change: float) -> Iterator[Update]:
    if (phase := str(fields.get(key))) in PHASES:
        yield Update(c.IN_PHASE, (_side(fields), phase), change)


def _moved_on(fields: Fields) -> Iterator[Update]:
    yield from _in_phase(fields, "netloader.state.from", -1.0)
    yield from _in_phase(fields, "netloader.state.to", 1.0)


def _moved(fields: Fields) -> Iterator[Update]:
    yield Update(c.BYTES, (_side(fields),), _number(fields, "netloader.transfer.bytes"))


def _differs(fields: Fields) -> Iterator[Update]:
    name = str(fields.get("netloader.field", "")).strip("'\"")  # as people read it: quoted
    yield Update(c.DIFFERENCES, ("client", _field(name)))


def _fell_back(fields: Fields) -> Iterator[Update]:
    yield NOT_QUEUED
    yield Update(c.LOADS, ("fallback",))
    yield Update(c.FALLBACKS, (_among(fields, "netloader.reason", REASONS),))


def _offered(fields: Fields) -> Iterator[Update]:
    role = _role(fields)
    yield Update(c.OFFERED, (role,), 1.0, Change.SET)
    for series, name in ((c.OFFERED_BYTES, "raw"), (c.CACHE_BYTES, "cached")):
        yield Update(series, (role,), _number(fields, f"netloader.{name}_bytes"), Change.SET)


def _tried(fields: Fields, sources: Sources) -> Iterator[Update]:
    yield NOT_QUEUED
    again = "yes" if _number(fields, "netloader.source.attempt") > 1 else "no"
    yield Update(c.ATTEMPTS, (sources.label(_peer(fields)), again))


def _waits(_: Fields) -> Iterator[Update]:
    yield Update(c.WAITS)
    yield Update(c.QUEUED, (), 1.0, Change.SET)


def _fast(fields: Fields) -> Iterator[Update]:
    now = _number(fields, "netloader.transfer.throughput_bytes_per_s")
    yield Update(c.RATE, (_side(fields),), now, Change.SET)


def _refused(why: str) -> Callable[[Fields], Iterable[Update]]:
    return lambda fields: [Update(c.REFUSED, (why,), _number(fields, "netloader.connections"))]


def _received(fields: Fields, sources: Sources) -> Iterator[Update]:
    yield Update(c.LOADS, ("received",))
    yield Update(c.IN_USE, (sources.label(_peer(fields)),), 1.0, Change.ONLY)


def _closed(fields: Fields) -> Iterator[Update]:
    side = _side(fields)
    reason = _among(fields, "netloader.reason", REASONS)
    yield Update(c.SESSIONS, (side, _among(fields, "netloader.outcome", OUTCOMES), reason))
    for state in State:
        if (spent := fields.get(f"netloader.phase.{state.value}.duration_s")) is not None:
            seconds = spent if isinstance(spent, int | float) else 0.0
            yield Update(c.PHASES, (side, state.value), seconds, Change.OBSERVE)
    if reason == Reason.DIGEST_MISMATCH.value:
        yield Update(c.DIGEST_FAILURES, (side,))
    if side == "server":
        for number in range(MOST_DIFFERENCES):
            if text := fields.get(f"netloader.difference.{number}"):
                yield Update(c.DIFFERENCES, (side, _field(str(text).partition(":")[0])))


def _among(fields: Fields, key: str, known: frozenset[str], absent: str = c.OTHER) -> str:
    value = str(fields.get(key, absent))
    return value if value in known else c.OTHER


def _number(fields: Fields, key: str) -> float:
    value = fields.get(key, 0)
    return value if isinstance(value, int | float) else 0.0


def _field(name: str) -> str:
    """The group of a field of the identity; those of a model's config are one."""
    group = name.partition(".")[0]
    return group if group in REMEDIES else c.OTHER


def _peer(fields: Fields) -> str:
    if "netloader.source" in fields:
        return str(fields["netloader.source"])
    host, port = fields.get("network.peer.address"), fields.get("network.peer.port")
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


BY_EVENT: Final[Mapping[str, Callable[[Fields], Iterable[Update]]]] = {
    "netloader.session.closed": _closed,
    "netloader.transfer.finished": _moved,
    "netloader.session.transition": _moved_on,
    "netloader.transfer.progress": _fast,
    "netloader.source.waiting": _waits,
    "netloader.source.differs": _differs,
    "netloader.peer.violation": lambda f: [Update(c.VIOLATIONS, (_side(f),))],
    "netloader.loader.ordinary": lambda _: [Update(c.LOADS, ("ordinary",))],
    "netloader.fallback.engaged": _fell_back,
    "netloader.server.offered": _offered,
    "netloader.server.withdrawn": lambda f: [Update(c.OFFERED, (_role(f),), 0.0, Change.SET)],
    "netloader.standby.waiting": lambda _: [Update(c.STANDBY, (), 1.0, Change.SET)],
    "netloader.standby.filled": lambda _: [Update(c.STANDBY, (), 0.0, Change.SET)],
    "netloader.standby.read": lambda _: [Update(c.STANDBY, (), 0.0, Change.SET)],
    "netloader.listener.insecure": _refused("tls"),
    "netloader.listener.refused": _refused("network"),
    "netloader.listener.started": lambda _: [Update(c.LISTENING)],
    "netloader.listener.stopped": lambda _: [Update(c.LISTENING, (), -1.0)],
}
BY_SESSION: Final[Mapping[str, Callable[[Sessions, Fields], Iterable[Update]]]] = {
    "netloader.session.opened": Sessions.begun,
    "netloader.session.closed": Sessions.ended,
}
BY_SOURCE: Final[Mapping[str, Callable[[Fields, Sources], Iterable[Update]]]] = {
    "netloader.source.tried": _tried,
    "netloader.loader.received": _received,
}
