"""A server's models over time: published, withdrawn, fenced for a change, counted."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from netloader.errors import LocalProtocolError
from netloader.fsm.messages import Begin, Lane, Reject, Request
from netloader.fsm.published_events import ModelState
from netloader.fsm.states import State
from netloader.io import Server, WeightsError
from netloader.io.snapshot import ModelSnapshot, SessionRecord
from netloader.io.store import digests
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import (
    ALGORITHM,
    IDENTITY,
    MIB,
    SOON_S,
    Peer,
    asking,
    contents,
    eventually,
    module_of,
    random,
    sealed,
    serving,
    zoo,
)

pytestmark = pytest.mark.usefixtures("driver")
WHY = "weights are updated"


def named(role: str) -> dict[str, str]:
    return {**IDENTITY, "role": role}


def large(seed: int) -> nn.Module:
    """More than the buffers of a connection hold: a client that does not read stops the server."""
    return module_of(w=random(32 * MIB, seed=seed, dtype=torch.uint8))


def weights(model: nn.Module) -> torch.Tensor:
    return model.get_parameter("w").data


@contextlib.contextmanager
def stalled(server: Server) -> Iterator[Peer]:
    """A client in the middle of its transfer, which does not read on."""
    with Peer.call(server.endpoint) as peer, Peer.call(server.endpoint) as lane:
        offer = peer.offered()
        lane.say(Lane(offer.session, 0))
        peer.answered()
        peer.say(Request(tuple(range(len(offer.segment_digests))), 1))
        assert peer.hear() == Begin()
        assert lane.sock.recv(1)
        yield peer


def only(server: Server) -> ModelSnapshot:
    (model,) = server.snapshot().models
    return model


# -- fence ---------------------------------------------------------------------------------------


def test_after_a_fence_clients_get_what_was_written_in_it() -> None:
    # Written through `.data`, which moves no version counter: every byte has to be looked at.
    model, target = large(1), large(2)
    with serving(model) as server:
        sealed(server)
        with server.fence(None, WHY):
            weights(model).fill_(7)
        outcome = fill(target, server.endpoint, IDENTITY, asking())

    assert outcome.ok, outcome.history()
    assert outcome.attempts[0].reason.value == "verified"
    assert bool((weights(target) == 7).all())


def test_a_fence_ends_sessions_and_refuses_new_ones_with_its_reason() -> None:
    with serving(large(1)) as server, stalled(sealed(server)) as peer:
        assert only(server).clients == 1
        with server.fence(None, WHY):
            inside = only(server)
            refused = fill(large(2), server.endpoint, IDENTITY, asking())
        answer = peer.hear()

    assert (inside.state, inside.clients, inside.withdrawn) == (ModelState.FENCED, 0, WHY)
    assert (refused.attempts[-1].reason.value, refused.attempts[-1].detail) == ("not_serving", WHY)
    assert isinstance(answer, Reject)
    assert answer.detail == WHY


@pytest.mark.parametrize("replace", ["published", "changed"])
def test_a_fence_ends_sessions_of_a_model_that_was_replaced_before(replace: str) -> None:
    model = large(1)
    with serving(model) as server, stalled(sealed(server)) as peer:
        if replace == "published":
            server.publish(model, IDENTITY)
        else:
            with torch.no_grad():
                model.get_parameter("w")[0].bitwise_xor_(1)  # found when the next client comes
            fill(large(2), server.endpoint, IDENTITY, asking())
        with server.fence(None, WHY):
            answer = peer.hear()  # within the deadline of a peer, or this fails

    assert isinstance(answer, Reject)
    assert answer.detail == WHY


def test_a_fence_leaves_other_roles_alone() -> None:
    with serving(zoo(1), named("target")) as server:
        server.publish(zoo(2), named("draft"))
        with server.fence("draft", WHY):
            assert fill(zoo(3), server.endpoint, named("target"), asking()).ok
            assert not fill(zoo(3), server.endpoint, named("draft"), asking()).ok
        assert fill(zoo(3), server.endpoint, named("draft"), asking()).ok


def test_of_two_fences_the_last_one_to_end_publishes() -> None:
    with serving(zoo(1)) as server:
        with server.fence(None, WHY):
            with server.fence(None, WHY):
                pass
            assert only(server).state is ModelState.FENCED
            assert not fill(zoo(3), server.endpoint, IDENTITY, asking()).ok
            with pytest.raises(LocalProtocolError, match="is fenced; publish it after the fence"):
                server.publish(zoo(2), IDENTITY)
        assert fill(zoo(3), server.endpoint, IDENTITY, asking()).ok


def test_a_block_that_fails_leaves_nothing_on_offer_until_it_is_published_again() -> None:
    model, target = large(1), large(2)
    with serving(model) as server:
        with contextlib.suppress(ZeroDivisionError), server.fence(None, WHY):
            weights(model)[:MIB] = 7  # and not the rest
            raise ZeroDivisionError
        assert not fill(target, server.endpoint, IDENTITY, asking()).ok
        assert (only(server).state, only(server).withdrawn) == (ModelState.LOST, WHY)
        server.publish(model, IDENTITY)
        assert fill(target, server.endpoint, IDENTITY, asking()).ok
    assert contents(target) == contents(model)


def test_a_fence_whose_model_cannot_be_served_afterwards_says_so() -> None:
    model = zoo(1)
    with serving(model) as server:
        with pytest.raises(WeightsError, match="meta"), server.fence(None, WHY):
            model.to("meta")
        assert only(server).withdrawn == WHY


class Held:
    """A digest whose first bytes wait for `go_on`."""

    def __init__(self) -> None:
        self.reading, self.go_on = threading.Event(), threading.Event()
        self._real = digests.ALGORITHMS[ALGORITHM]

    def __call__(self, threads: int) -> digests.Hasher:
        self.reading.set()
        assert self.go_on.wait(SOON_S)
        return self._real(threads)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    found = Held()
    monkeypatch.setitem(digests.ALGORITHMS, ALGORITHM, found)
    yield found
    found.go_on.set()


def test_a_fence_does_not_run_its_block_while_weights_are_read(held: Held) -> None:
    ran: list[None] = []
    with serving(zoo(1)) as server:
        assert held.reading.wait(SOON_S)
        with pytest.raises(TimeoutError, match=WHY), server.fence(None, WHY, 0.05):
            ran.append(None)
        held.go_on.set()
        assert fill(zoo(2), server.endpoint, IDENTITY, asking()).ok
    assert ran == []


# -- withdraw, wait_ready, snapshot ----------------------------------------------------------------


def test_what_is_withdrawn_is_refused_until_it_is_published_again() -> None:
    with serving(zoo(1)) as server:
        server.withdraw(None, "maintenance")
        (attempt,) = fill(zoo(2), server.endpoint, IDENTITY, asking()).attempts
        assert server.wait_ready(0)
        gone = only(server)
        server.publish(zoo(1), IDENTITY)
        assert fill(zoo(2), server.endpoint, IDENTITY, asking()).ok

    assert (attempt.reason.value, attempt.detail) == ("not_serving", "maintenance")
    assert (gone.state, gone.withdrawn) == (ModelState.LOST, "maintenance")


def test_an_eviction_ends_sessions_too_and_lasts_until_it_is_published_again() -> None:
    model, target = large(1), large(2)
    with serving(model) as server:
        with stalled(sealed(server)) as peer:
            server.publish(model, IDENTITY)  # the client still reads what this replaced
            assert server.evict(None, WHY, SOON_S)
            answer = peer.hear()
        weights(model).fill_(7)
        (attempt,) = fill(target, server.endpoint, IDENTITY, asking()).attempts
        gone = only(server)
        server.publish(model, IDENTITY)
        assert fill(target, server.endpoint, IDENTITY, asking()).ok

    assert isinstance(answer, Reject)
    assert (answer.reason, answer.detail) == ("not_serving", WHY)
    assert (attempt.reason.value, attempt.detail) == ("not_serving", WHY)
    assert (gone.state, gone.clients, gone.withdrawn) == (ModelState.LOST, 0, WHY)
    assert bool((weights(target) == 7).all())


def test_an_eviction_says_when_weights_are_still_read(held: Held) -> None:
    with serving(zoo(1)) as server:
        assert held.reading.wait(SOON_S)
        assert not server.evict(None, WHY, 0.05)
        held.go_on.set()
        assert server.evict(None, WHY, SOON_S)


def test_only_what_is_served_can_be_evicted() -> None:
    with serving(zoo(1)) as server, pytest.raises(ValueError, match="role is 'draft'"):
        server.evict("draft", WHY)


def test_ready_is_when_the_digests_are_known(held: Held) -> None:
    with serving(zoo(1)) as server:
        before = (server.wait_ready(0.05), only(server).state)
        held.go_on.set()
        assert server.wait_ready(SOON_S)
        assert only(server).state is ModelState.OFFERED
    assert before == (False, ModelState.PREPARING)


def test_a_snapshot_counts_what_was_done_for_clients_of_a_role() -> None:
    model = large(1)
    with serving(model, named("target")) as server:
        assert fill(large(2), server.endpoint, named("target"), asking()).ok
        with server.fence("target", WHY):
            pass
        assert fill(large(2), server.endpoint, named("target"), asking()).ok
        assert eventually(lambda: only(server).clients == 0)
        seen, endpoint = only(server), server.snapshot().endpoint

    total = 32 * MIB
    assert seen == ModelSnapshot("target", ModelState.OFFERED, total, 0, 2, 2 * total, "")
    assert endpoint == server.endpoint


def test_each_session_is_reported_and_what_the_callback_raises_ends_none() -> None:
    records: list[SessionRecord] = []

    def note(record: SessionRecord) -> None:
        records.append(record)
        raise ZeroDivisionError

    with serving(large(1), on_session=note) as server:
        assert fill(large(2), server.endpoint, IDENTITY, asking()).ok
        assert eventually(lambda: len(records) == 1)
        with stalled(server) as peer, server.fence(None, WHY):
            assert isinstance(peer.hear(), Reject)
        assert eventually(lambda: len(records) == 2)
        assert fill(large(2), server.endpoint, IDENTITY, asking()).ok

    done, evicted = records[:2]
    assert (done.state, done.reason.value, done.sent_bytes) == (State.DONE, "verified", 32 * MIB)
    assert (
        evicted.state is State.DONE,
        evicted.reason.value,
        evicted.detail,
        evicted.sent_bytes,
    ) == (False, "not_serving", WHY, 0)
    assert done.peer.host == "127.0.0.1"


def test_a_callback_that_does_not_return_stops_no_other_session() -> None:
    called, go_on = threading.Event(), threading.Event()

    def wait(_: SessionRecord) -> None:
        called.set()
        go_on.wait(SOON_S)

    with serving(zoo(1), on_session=wait) as server:
        assert fill(zoo(2), server.endpoint, IDENTITY, asking()).ok
        assert called.wait(SOON_S)
        assert fill(zoo(3), server.endpoint, IDENTITY, asking()).ok
        assert not go_on.is_set()
        go_on.set()


@pytest.mark.parametrize(
    "call",
    [
        lambda server: server.withdraw(None, WHY),
        lambda server: server.fence(None, WHY).__enter__(),
        lambda server: server.wait_ready(0),
        lambda server: server.snapshot(),
    ],
)
def test_a_closed_server_says_that_it_is_closed(call: Callable[[Server], object]) -> None:
    with serving(zoo(1)) as server:
        pass
    with pytest.raises(LocalProtocolError, match="a closed server serves nothing"):
        call(server)


@pytest.mark.parametrize(
    ("role", "why", "kind", "words"),
    [
        ("draft", WHY, ValueError, "role is 'draft', which is not served; give one of: None"),
        (None, " ", ValueError, "why is empty"),
        (None, 7, TypeError, "why is of type int"),
        (7, WHY, TypeError, "role is of type int"),
    ],
)
def test_wrong_arguments_are_named(
    role: str | None, why: str, kind: type[Exception], words: str
) -> None:
    with serving(zoo(1)) as server:
        with pytest.raises(kind, match=words):
            server.withdraw(role, why)
        with pytest.raises(kind, match=words), server.fence(role, why):
            raise AssertionError
