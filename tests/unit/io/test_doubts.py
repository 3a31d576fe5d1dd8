"""After a client found other bytes: the weights are compared again, at once and not too often."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from netloader.fsm import published_events as ev
from netloader.fsm.messages import Begin, Lane, Reject, Request
from netloader.fsm.published import PAUSE_S, SHARE, ModelState, PublishedLife
from netloader.io import Server, fill
from netloader.io.comparing import Work
from netloader.io.published import PublishedModel
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    SOON_S,
    Peer,
    asking,
    contents,
    eventually,
    module_of,
    random,
    sealed,
    serving,
)

LIARS = 5


def model(seed: int) -> nn.Module:
    return module_of(a=random(20_000, seed=seed), b=random(3_000, seed=seed + 1))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def audits(monkeypatch: pytest.MonkeyPatch) -> list[PublishedModel]:
    """Whose weights were compared again, once for each time."""
    seen: list[PublishedModel] = []
    worked = PublishedModel._worked

    def counted(self: PublishedModel, work: Work, workers: int) -> ev.Event:
        if isinstance(work, ev.Audit):
            seen.append(self)
        return worked(self, work, workers)

    monkeypatch.setattr(PublishedModel, "_worked", counted)
    return seen


def published_of(server: Server) -> PublishedModel:
    assert server._open is not None
    _, catalog = server._open
    return catalog.published_models[0]


def lie(server: Server) -> None:
    """Take an offer, begin to receive, and claim that the bytes were other ones."""
    with Peer.call(server.endpoint) as peer:
        offer = peer.offered()
        with Peer.call(server.endpoint) as lane:
            lane.say(Lane(offer.session, 0))
            peer.answered()
            peer.say(Request((0, 1), 1))
            assert peer.hear() == Begin()
            peer.say(Reject("digest_mismatch", "segment 0 does not match its published digest"))
            while peer.hear() is not None:
                pass


# -- over sockets --------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["tcp", "gloo"])
def test_only_the_first_client_pays_for_weights_that_were_changed(
    stack: ExitStack,
    captured: list[dict[str, Any]],
    transport: str,
) -> None:
    source = model(1)
    server = sealed(stack.enter_context(serving(source)))
    source.get_parameter("b").data[7] += 1

    first = fill(model(50), [server.endpoint], IDENTITY, asking(transport))
    target = model(60)
    patient = asking(transport, deadlines=replace(FAST, queue_s=SOON_S))
    second = fill(target, [server.endpoint], IDENTITY, patient)

    assert [a.reason.value for a in first.attempts] == ["digest_mismatch"]
    assert second.ok, second.history()
    reasons = [a.reason.value for a in second.attempts]
    assert "digest_mismatch" not in reasons, "the audit came before its transfer"
    assert contents(target) == contents(source), "the weights as they are now"
    doubts = [line for line in captured if line["event"] == "netloader.weights.doubted"]
    assert [line["netloader.side"] for line in doubts] == ["server"]


def test_a_client_that_lies_neither_withdraws_weights_nor_has_them_hashed_for_ever(
    stack: ExitStack, audits: list[PublishedModel]
) -> None:
    source, target = model(1), model(50)
    server = sealed(stack.enter_context(serving(source, max_clients=1)))

    for _ in range(LIARS):
        lie(server)

    assert fill(target, [server.endpoint], IDENTITY, asking()).ok
    assert contents(target) == contents(source)
    assert audits == [published_of(server)], "one, however many complain"


def test_an_offer_waits_for_the_outcome(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    source = model(1)
    server = sealed(stack.enter_context(serving(source)))
    begun, go_on = threading.Event(), threading.Event()
    worked = PublishedModel._worked

    def held(self: PublishedModel, work: Work, workers: int) -> ev.Event:
        begun.set()
        assert go_on.wait(SOON_S)
        return worked(self, work, workers)

    monkeypatch.setattr(PublishedModel, "_worked", held)
    published = published_of(server)
    source.get_parameter("a").data[7] += 1
    lie(server)
    assert begun.wait(SOON_S)
    assert eventually(lambda: published.snapshot().clients == 0), "the client that lied has left"
    target = model(60)
    said: list[str] = []

    def ask() -> None:
        outcome = fill(target, [server.endpoint], IDENTITY, asking())
        said.extend(a.reason.value for a in outcome.attempts)

    client = threading.Thread(target=ask)
    client.start()
    assert eventually(lambda: published.snapshot().clients == 1)
    go_on.set()
    client.join(SOON_S)

    assert said == ["not_ready"], "never the weights from before"
    assert eventually(lambda: fill(target, [server.endpoint], IDENTITY, asking()).ok)
    assert contents(target) == contents(source)


def test_weights_of_another_role_are_not_compared(
    stack: ExitStack, audits: list[PublishedModel]
) -> None:
    server = stack.enter_context(serving(model(1)))
    server.publish(model(3), {**IDENTITY, "role": "draft"})

    lie(sealed(server))

    assert eventually(lambda: audits)
    assert audits == [published_of(server)]


def test_a_process_without_threads_left_can_still_be_asked(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = published_of(sealed(stack.enter_context(serving(model(1)))))

    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", none_left)
        published.doubt()

    assert published.digests(0) is not None


# -- how often -----------------------------------------------------------------------------------


def offered() -> PublishedLife:
    life = PublishedLife(places=1)
    life.step(ev.DigestsKnown(("one",)), 0.0)
    return life


def doubted(life: PublishedLife, now: float) -> bool:
    """Whether a doubt begins an audit."""
    return life.step(ev.Doubted(), now) == (ev.Audit(("one",)),)


def test_one_at_a_time() -> None:
    life = offered()

    assert doubted(life, 1000.0)
    assert not doubted(life, 1000.0)
    assert life.waiting
    life.step(ev.AuditEnded(), 1000.0)
    assert life.state is ModelState.OFFERED


@pytest.mark.parametrize(("took", "rest"), [(0.1, PAUSE_S), (30.0, 30.0 * SHARE)])
def test_the_next_one_rests_and_longer_after_a_long_one(took: float, rest: float) -> None:
    life = offered()
    assert doubted(life, 1000.0)
    ended = 1000.0 + took
    life.step(ev.AuditEnded(), ended)

    assert not doubted(life, ended + rest - 1)
    assert doubted(life, ended + rest)


def test_audits_for_lying_clients_take_a_bounded_share_of_time() -> None:
    life, now, spent, begun = offered(), 1000.0, 0.0, 1000.0
    while now < begun + 100_000:
        if doubted(life, now):
            now += 40.0
            spent += 40.0
            life.step(ev.AuditEnded(), now)
        now += 1.0

    assert spent <= 100_000 / SHARE
