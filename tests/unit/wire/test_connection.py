"""A conversation as bytes in, bytes out: no socket, no thread, and time only as an argument."""

from dataclasses import replace

import pytest

from netloader.errors import LocalProtocolError
from netloader.fsm.effects import (
    AbortTransfer,
    ChooseSegments,
    JoinTransport,
    OpenTransport,
    PrepareOffer,
    Settle,
    StartTransfer,
)
from netloader.fsm.events import (
    Connected,
    ConnectFailed,
    Event,
    Finish,
    OfferReady,
    StopRequested,
    Transferred,
    TransportJoined,
    TransportReady,
)
from netloader.fsm.manifest import Manifest, TensorSpec, root_digest
from netloader.fsm.messages import Begin, Complete, Lane, Opened, Reject
from netloader.fsm.reasons import Reason
from netloader.fsm.session import FRAME_BEFORE_TRUST, Session, Step
from netloader.fsm.states import State
from netloader.wire import LINGER_S, Connection, Decoder, encode
from netloader.wire.frames import HEADER
from tests.support.messages import (
    ASK,
    CHALLENGE,
    DIGESTS,
    GUARDED,
    NBYTES,
    OFFER,
    OFFERING,
    SECURED,
    WISH,
    client,
    hello,
    proven,
    server,
)

NOW = 1.0


def connected(session: Session) -> Connection:
    connection = Connection(session)
    connection.handle(Connected(), NOW)
    return connection


def closed(connection: Connection) -> bool:
    """Whether it is closed by now."""
    return connection.closed


def heard(data: bytes) -> list[str]:
    """What bytes say to a peer that may be told anything."""
    return [type(message).__name__ for message in Decoder(1 << 20).feed(data)]


def work(connection: Connection) -> None:
    """Carry out the tasks of a connection, successfully."""
    done: dict[type, Event] = {
        PrepareOffer: OfferReady(OFFER.candidates, DIGESTS),
        OpenTransport: TransportReady("tcp"),
        JoinTransport: TransportJoined("tcp"),
        ChooseSegments: Finish() if connection.session.requests.count else ASK,
        StartTransfer: Transferred(NBYTES),
    }
    for task in connection.tasks():
        if type(task) in done:
            connection.handle(done[type(task)], NOW)


def transferring() -> Connection:
    """A client whose transfer has begun."""
    connection = connected(client())
    connection.receive_data(encode(OFFER), NOW)
    connection.handle(TransportReady("tcp"), NOW)
    connection.handle(TransportJoined("tcp"), NOW)
    connection.receive_data(encode(Opened("tcp")), NOW)
    connection.handle(ASK, NOW)
    connection.receive_data(encode(Begin()), NOW)
    assert connection.session.state is State.TRANSFER
    connection.data_to_send()
    connection.tasks()
    return connection


@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
@pytest.mark.parametrize(("spec", "entry"), [(WISH, OFFERING), (SECURED, GUARDED)])
def test_two_connections_need_nothing_but_each_others_bytes(
    spec: object, entry: object, cut: int
) -> None:
    there, here = connected(server(entry)), connected(client(spec))  # type: ignore[arg-type]
    ends = (there, here)
    for _ in range(20):
        for mine, other in (ends, ends[::-1]):
            data = mine.data_to_send()
            for start in range(0, len(data), cut):
                other.receive_data(data[start : start + cut], NOW)
            work(other)

    assert [end.session.state for end in ends] == [State.DONE] * 2
    assert all(end.closing and end.eof_to_send and not end.closed for end in ends)
    for end in ends:
        end.receive_eof(NOW)
        assert (end.closed, end.next_timeout()) == (True, None)


def test_what_is_to_be_sent_and_done_is_given_once() -> None:
    connection = connected(client())

    assert heard(connection.data_to_send()) == ["Hello"]
    assert connection.data_to_send() == b""
    connection.receive_data(encode(OFFER), NOW)
    assert connection.tasks() == (OpenTransport(OFFER, "tcp"),)
    assert connection.tasks() == ()


def test_each_step_is_shown_when_it_was_taken() -> None:
    seen: list[tuple[State, State]] = []

    def watch(session: Session, step: Step) -> None:
        seen.append((step.after, session.state))

    connection = Connection(server(), watch)
    connection.handle(Connected(), NOW)
    connection.receive_data(encode(hello()) + encode(Reject("stopped")), NOW)

    assert seen == [(state, state) for state in (State.HANDSHAKE, State.VALIDATE, State.FALLBACK)]
    assert [type(t) for t in connection.tasks()] == [PrepareOffer, AbortTransfer, Settle]


def test_how_long_a_frame_may_be_is_decided_frame_by_frame() -> None:
    # The first frame proves the server; only then may it say as much as the second one does.
    specs = (TensorSpec(f"tensor {i}", "float32", (1,), (1,), 4) for i in range(2000))
    manifest = Manifest(tuple(specs))
    offer = replace(
        OFFER,
        manifest=manifest,
        segment_digests=DIGESTS[:1],
        root=root_digest(DIGESTS[:1]),
    )
    spec = replace(SECURED, manifest=manifest)
    frame = encode(proven(offer, hello(spec)))
    assert len(frame) > FRAME_BEFORE_TRUST
    connection = connected(client(spec))
    connection.receive_data(encode(CHALLENGE) + frame, NOW)

    assert connection.session.state is State.VALIDATE


def test_a_frame_beyond_the_limit_is_refused_at_its_header() -> None:
    connection = connected(server())
    connection.receive_data(encode(hello())[:5] + (1 << 30).to_bytes(4, "big"), NOW)

    assert heard(connection.data_to_send()) == ["Reject"]
    assert connection.held_bytes == 0
    connection.receive_data(bytes(100_000), NOW)
    assert connection.held_bytes == 0


def test_half_a_frame_is_held_and_no_more() -> None:
    connection = connected(server())
    connection.receive_data(encode(hello())[:20], NOW)
    assert connection.held_bytes == 20 <= FRAME_BEFORE_TRUST + HEADER.size


def test_a_lane_in_a_conversation_is_a_violation() -> None:
    connection = connected(server())
    connection.receive_data(encode(Lane("session-1", 0)), NOW)

    verdict = connection.session.verdict
    assert verdict is not None
    assert verdict.reason is Reason.PROTOCOL_VIOLATION


# -- the end -------------------------------------------------------------------------------------


def test_a_settled_connection_waits_for_its_peer_to_read_the_last_word() -> None:
    connection = connected(client())
    connection.data_to_send()
    connection.handle(StopRequested(), NOW)

    assert not connection.eof_to_send, "the last word has not been taken yet"
    assert heard(connection.data_to_send()) == ["Reject"]
    assert (connection.eof_to_send, connection.closed) == (True, False)
    assert connection.next_timeout() == NOW + LINGER_S
    connection.handle_timeout(NOW + LINGER_S - 0.01)
    assert not closed(connection)
    connection.handle_timeout(NOW + LINGER_S)
    assert closed(connection)


def test_the_end_of_the_peers_bytes_loses_the_connection() -> None:
    connection = connected(client())
    connection.receive_eof(NOW, "ConnectionResetError")

    verdict = connection.session.verdict
    assert verdict is not None
    assert (verdict.reason, verdict.detail) == (Reason.CONNECTION_LOST, "ConnectionResetError")
    assert (connection.closed, connection.eof_received) == (True, True)
    assert connection.data_to_send() == b""


def test_a_client_that_was_sent_everything_finishes_though_its_peer_is_gone() -> None:
    connection = transferring()
    connection.receive_data(encode(Complete(NBYTES)), NOW)
    connection.receive_eof(NOW)
    assert (connection.closed, connection.eof_received) == (False, True)

    connection.handle(Transferred(NBYTES), NOW)
    connection.handle(Finish(), NOW)

    assert connection.session.state is State.DONE
    assert (connection.closed, connection.data_to_send()) == (True, b"")


def test_after_a_failed_send_the_peer_is_still_heard() -> None:
    connection = transferring()
    connection.send_failed()
    assert not closed(connection)
    connection.receive_data(encode(Reject("not_serving", "closing")), NOW)

    verdict = connection.session.verdict
    assert verdict is not None
    assert (verdict.reason, verdict.by_peer) == (Reason.NOT_SERVING, True)
    assert closed(connection), "there is nobody to wait for"
    assert AbortTransfer() in connection.tasks()


def test_a_last_word_that_cannot_be_sent_ends_the_wait_for_the_peer() -> None:
    connection = transferring()
    connection.handle(StopRequested(), NOW)
    assert connection.data_to_send()
    connection.send_failed()

    assert connection.closed


def test_a_connection_that_never_was_closes_at_once() -> None:
    connection = Connection(client())
    connection.handle(ConnectFailed("refused"), NOW)

    assert (connection.closed, connection.data_to_send()) == (True, b"")
    assert [type(task) for task in connection.tasks()] == [Settle]


def test_a_deadline_is_an_event_only_when_it_has_passed() -> None:
    connection = connected(client())
    due = connection.next_timeout()
    assert due is not None
    connection.handle_timeout(due - 0.001)
    assert connection.session.state is State.HANDSHAKE
    connection.handle_timeout(due)

    verdict = connection.session.verdict
    assert verdict is not None
    assert verdict.reason is Reason.DEADLINE_PASSED


def test_a_closed_connection_takes_nothing_more() -> None:
    connection = Connection(client())
    connection.handle(ConnectFailed("refused"), NOW)
    connection.tasks()
    connection.handle(Connected(), NOW)
    connection.receive_data(encode(OFFER), NOW)
    connection.handle_timeout(1e9)

    assert (connection.tasks(), connection.data_to_send()) == ((), b"")


def test_a_drivers_mistake_raises() -> None:
    with pytest.raises(LocalProtocolError):
        connected(client()).handle(OfferReady((), ()), NOW)
