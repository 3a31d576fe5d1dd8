"""A connection to any bytes: it never raises, and how they are cut makes no difference."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from netloader.fsm.events import Connected
from netloader.fsm.messages import Lane
from netloader.fsm.session import Session, Step
from netloader.testing import lawful
from netloader.wire import Acceptor, Connection, Control, Decision, encode
from netloader.wire.frames import HEADER
from tests.property.strategies import plausible
from tests.support.messages import GUARDED, SECURED, client, server

NOW = 1.0
STREAMS = st.lists(
    st.one_of(plausible.map(encode), st.binary(min_size=1, max_size=40)), max_size=4
).map(b"".join)
SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=5)
MAKE: dict[str, Callable[[], Session]] = {
    "client": client,
    "server": server,
    "secured client": lambda: client(SECURED),
    "guarded server": lambda: server(GUARDED),
}
SIDES = st.sampled_from(list(MAKE))


class Watched:
    """A connection, and the steps it took."""

    def __init__(self, side: str) -> None:
        session = MAKE[side]()
        self.steps: list[Step] = []
        self.connection = Connection(session, self._saw)
        self.connection.handle(Connected(), NOW)

    def _saw(self, session: Session, step: Step) -> None:
        lawful(session, step, NOW)
        self.steps.append(step)

    def hear(self, data: bytes) -> None:
        """Take bytes; never more than a frame is held."""
        self.connection.receive_data(data, NOW)
        held, limit = self.connection.held_bytes, self.connection.session.frame_limit
        assert held <= limit + HEADER.size, "bounded"

    def outcome(self) -> tuple[object, ...]:
        """All that a driver can see."""
        connection = self.connection
        sent, tasks = connection.data_to_send(), connection.tasks()
        ends = connection.closing, connection.closed, connection.eof_to_send
        return self.steps, sent, tasks, ends, connection.next_timeout(), connection.held_bytes


def extents(stream: bytes, sizes: list[int]) -> list[bytes]:
    """A stream in extents of these sizes, over and over."""
    found: list[bytes] = []
    at = 0
    while at < len(stream):
        size = sizes[len(found) % len(sizes)]
        found.append(stream[at : at + size])
        at += size
    return found


@given(side=SIDES, stream=STREAMS, sizes=SIZES)
def test_how_a_stream_is_cut_does_not_matter(side: str, stream: bytes, sizes: list[int]) -> None:
    whole, cut = Watched(side), Watched(side)
    whole.hear(stream)
    for extent in extents(stream, sizes):
        cut.hear(extent)

    assert cut.outcome() == whole.outcome()


@given(stream=STREAMS, sizes=SIZES)
def test_what_an_acceptor_has_read_is_not_lost(stream: bytes, sizes: list[int]) -> None:
    acceptor, at = Acceptor(NOW), 0
    decision: Decision | None = None
    while decision is None and at < len(stream):
        size = min(acceptor.wanted, sizes[at % len(sizes)])
        decision = acceptor.receive_data(stream[at : at + size])
        at += size
    direct, accepted = Watched("server"), Watched("server")
    direct.hear(stream)
    if isinstance(decision, Lane):
        assert stream.startswith(encode(decision))
        assert at == len(encode(decision)), "the bytes of the transport are left alone"
    elif isinstance(decision, Control):
        accepted.hear(decision.data)
        accepted.hear(stream[at:])
        assert accepted.outcome() == direct.outcome()
    else:
        assert direct.steps[1:] == [], "no frame was whole"
