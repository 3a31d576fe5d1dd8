"""Several published models on one port, put there and taken away while the listener runs."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pytest
import torch
from torch import nn

from netloader.errors import LocalProtocolError
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Segment
from netloader.fsm.messages import Begin, Lane, Offer, Reject, Request
from netloader.io import Endpoint, Outcome, ServerOptions, fill, serve
from netloader.io.catalog import Catalog
from netloader.io.listener import Listener, bind
from netloader.io.published import PublishedModel
from netloader.io.publishing import publish
from netloader.io.store.base import Store
from netloader.io.store.module import ModuleStore
from netloader.io.transports import TRANSPORTS, SenderSetup
from netloader.io.transports.tcp import Tcp, TcpAttachment, TcpSender
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    KIB,
    MIB,
    SOON_S,
    Peer,
    asking,
    contents,
    eventually,
    hello,
    module_of,
    our_threads,
    random,
    serving,
    zoo,
)

SLEEPS: Final = "the engine sleeps"
BOTH: Final = ("tcp", "gloo")


def large(seed: int) -> nn.Module:
    """More than the buffers of a connection hold: who does not read stops the server."""
    return module_of(w=random(32 * MIB, seed=seed, dtype=torch.uint8))


def named(role: str) -> dict[str, str]:
    return {**IDENTITY, "role": role}


def published(role: str, model: nn.Module) -> PublishedModel:
    """A model on offer, its digests sealed; any transport that a test has made known."""
    options = ServerOptions((*BOTH, "stubborn"), segment_bytes=256 * KIB)
    published = publish(ModuleStore.of(model), Identity(named(role)), options)
    published.seal()
    return published


class Shop:
    """A listener with a target and a draft."""

    def __init__(self, target: nn.Module, draft: nn.Module) -> None:
        self.target, self.draft = published("target", target), published("draft", draft)
        self.catalog = Catalog((self.target, self.draft))
        options = ServerOptions(deadlines=FAST)
        self.listener = Listener(bind("127.0.0.1", 0), self.catalog, options)
        self.endpoint: Endpoint = self.listener.endpoint

    def fill(self, role: str, into: nn.Module, transport: str = "tcp", **options: Any) -> Outcome:
        """Be a client of one role."""
        return fill(into, [self.endpoint], named(role), asking(transport, **options))

    def call(self) -> Peer:
        """Connect, and say nothing yet."""
        return Peer.call(self.endpoint)


@pytest.fixture
def opened() -> Iterator[Callable[..., Shop]]:
    shops: list[Shop] = []

    def make(target: nn.Module | None = None, draft: nn.Module | None = None) -> Shop:
        shops.append(Shop(target or zoo(1), draft or large(2)))
        return shops[-1]

    yield make
    for shop in shops:
        shop.listener.close()


def once(act: Callable[[], object]) -> Callable[[int, int], None]:
    """A progress report that does something the first time."""
    done: list[object] = []

    def report(moved: int, total: int) -> None:
        if not done:
            done.append(None)
            act()

    return report


def reason(outcome: Outcome) -> str:
    (attempt,) = outcome.attempts
    return attempt.reason.value


def refusal(peer: Peer) -> tuple[str, str]:
    answer = peer.hear()
    assert isinstance(answer, Reject), answer
    return answer.reason, answer.detail


# -- who gets what -------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", BOTH)
def test_two_roles_on_one_port_each_get_their_own_bytes(
    opened: Callable[..., Shop], transport: str
) -> None:
    shop, target, draft = opened(), zoo(70), large(71)
    drafted: list[Outcome] = []

    def meanwhile() -> None:
        drafted.append(shop.fill("draft", draft, transport))

    assert shop.fill("target", target, transport, report=once(meanwhile)).ok
    assert drafted[0].ok
    assert contents(target) == contents(zoo(1))
    assert contents(draft) == contents(large(2))


def test_a_role_that_nobody_serves_is_refused_with_both_roles_named(
    opened: Callable[..., Shop],
) -> None:
    (attempt,) = opened().fill("vision", zoo(70)).attempts

    assert attempt.reason.value == "identity_mismatch"
    (found,) = attempt.differences
    assert (found.field, found.mine, found.theirs) == ("role", "vision", "target")


def test_a_replaced_model_is_sent_to_its_present_client_and_the_new_one_to_the_next(
    opened: Callable[..., Shop],
) -> None:
    shop, first, second = opened(), large(70), large(71)
    later: list[Outcome] = []

    def replace() -> None:
        shop.catalog.put(published("draft", large(3)))
        later.append(shop.fill("draft", second))

    outcome = shop.fill("draft", first, lanes=1, report=once(replace))

    assert (outcome.ok, later[0].ok) == (True, True)
    assert contents(first) == contents(large(2))
    assert contents(second) == contents(large(3))


def test_a_server_takes_a_second_model_and_another_in_its_place() -> None:
    target, draft = zoo(70), zoo(71)
    with serving(zoo(1), named("target")) as server:
        server.publish(zoo(2), named("draft"))
        server.publish(zoo(3), named("draft"))
        for model, role in ((target, "target"), (draft, "draft")):
            assert fill(model, [server.endpoint], named(role), asking()).ok

    assert contents(target) == contents(zoo(1))
    assert contents(draft) == contents(zoo(3))
    with pytest.raises(LocalProtocolError, match="closed"):
        server.publish(zoo(4), named("draft"))


def test_closing_ends_the_digests_of_a_model_that_was_replaced_too() -> None:
    before = our_threads()
    server = serve(large(1), named("target"))
    server.publish(large(2), named("target"))
    server.close()

    assert eventually(lambda: our_threads() <= before)


# -- the fence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", BOTH)
def test_evict_ends_a_transfer_and_no_other_and_what_is_put_there_then_is_served(
    opened: Callable[..., Shop], transport: str
) -> None:
    source = large(2)
    shop, target, draft = opened(large(1), source), large(70), large(71)
    evicted: list[bool] = []
    ended: list[Outcome] = []

    def evict() -> None:
        evicted.append(shop.draft.evict(SLEEPS, SOON_S))
        with torch.no_grad():
            source.get_parameter("w").fill_(7)  # nobody reads it any more

    def meanwhile() -> None:
        ended.append(shop.fill("draft", draft, transport, lanes=1, report=once(evict)))

    outcome = shop.fill("target", target, transport, lanes=1, report=once(meanwhile))

    (attempt,) = ended[0].attempts
    assert evicted == [True]
    assert (attempt.reason.value, attempt.detail) == ("not_serving", SLEEPS)
    assert outcome.ok
    assert contents(target) == contents(large(1))
    assert reason(shop.fill("draft", draft)) == "not_serving"
    shop.catalog.put(published("draft", source))
    assert shop.fill("draft", draft, transport).ok
    assert contents(draft) == contents(source)


def test_evict_ends_a_transfer_to_a_client_that_has_stopped_reading(
    opened: Callable[..., Shop],
) -> None:
    shop = opened()
    with shop.call() as peer, shop.call() as lane:
        peer.say(hello(identity=named("draft")))
        offer = peer.hear()
        assert isinstance(offer, Offer)
        lane.say(Lane(offer.session, 0))
        peer.answered()
        peer.say(Request(tuple(range(len(offer.segment_digests)))))
        assert peer.hear() == Begin()
        assert lane.sock.recv(1)

        assert shop.draft.evict(SLEEPS, SOON_S)
        assert refusal(peer) == ("not_serving", SLEEPS)


def test_evict_ends_sessions_of_the_model_and_none_that_has_not_chosen_one(
    opened: Callable[..., Shop],
) -> None:
    shop = opened()
    unsealed = publish(ModuleStore.of(zoo(4)), Identity(named("draft")), ServerOptions())
    with shop.call() as undecided, shop.call() as offered:
        offered.say(hello(identity=named("draft")))
        assert isinstance(offered.hear(), Offer)
        shop.catalog.put(unsealed)
        with shop.call() as waiting, shop.call() as other:
            waiting.say(hello(identity=named("draft")))
            other.say(hello(identity=named("target")))
            assert isinstance(other.hear(), Offer)
            assert eventually(lambda: not unsealed.quiet(0))

            assert unsealed.evict(SLEEPS, SOON_S)
            assert refusal(waiting) == ("not_serving", SLEEPS)
            assert shop.draft.evict("weights are updated", SOON_S)
            assert refusal(offered) == ("not_serving", "weights are updated")
            undecided.say(hello(identity=named("target")))
            assert isinstance(undecided.hear(), Offer)


def test_what_an_owner_publishes_itself_is_not_published_anew_by_the_server() -> None:
    # After a fence its owner alone knows what there is to offer.
    model = large(1)
    with serve(zoo(1), named("target")) as server:
        server.offer(published("draft", model))
        target = large(2)
        assert fill(target, [server.endpoint], named("draft"), asking()).ok
        with server.fence("draft", SLEEPS):
            model.get_parameter("w").data.fill_(7)
        assert reason(fill(target, [server.endpoint], named("draft"), asking())) == "not_serving"
        server.offer(published("draft", model))
        assert fill(target, [server.endpoint], named("draft"), asking()).ok
    assert contents(target) == contents(model)


def test_evict_returns_true_only_after_the_last_reader(
    opened: Callable[..., Shop],
) -> None:
    reading, let_go = threading.Event(), threading.Event()

    class Stubborn(TcpSender):
        """Reads on, whatever happens to its session."""

        def run(self, segments: Sequence[Segment], lanes: int) -> int:
            reading.set()
            let_go.wait(SOON_S)
            return 0

    class StubbornTcp(Tcp):
        name = "stubborn"

        def attach(self, store: Store) -> TcpAttachment:
            return Sending(store)

    class Sending(TcpAttachment):
        def sender(self, setup: SenderSetup) -> TcpSender:
            return Stubborn(self.store, setup)

    shop = opened()
    with TRANSPORTS.registered(StubbornTcp()), shop.call() as peer:
        peer.say(hello("stubborn", named("draft")))
        assert isinstance(peer.hear(), Offer)
        peer.answered("stubborn")
        peer.say(Request((0,)))
        assert reading.wait(SOON_S)

        assert not shop.draft.evict(SLEEPS, 0.05)
        assert peer.hear() == Begin()
        assert refusal(peer) == ("not_serving", SLEEPS)
        assert peer.hear() is None  # the session is over, and still it is read
        assert not shop.draft.evict(SLEEPS, 0.05)
        let_go.set()
        assert shop.draft.evict(SLEEPS, SOON_S)


def test_evict_without_sessions_returns_at_once(opened: Callable[..., Shop]) -> None:
    shop = opened()

    assert shop.draft.evict(SLEEPS, 0)
    with shop.call() as peer:
        peer.say(hello(identity=named("draft")))
        assert refusal(peer) == ("not_serving", SLEEPS)
    assert shop.fill("target", zoo(70)).ok


def test_evict_returns_true_after_the_listener_closed(opened: Callable[..., Shop]) -> None:
    shop = opened()
    with shop.call() as peer:
        peer.say(hello(identity=named("draft")))
        assert isinstance(peer.hear(), Offer)
        shop.listener.close()

        assert shop.draft.evict(SLEEPS, SOON_S)


def test_many_threads_may_evict_at_once_while_clients_come_and_go(
    opened: Callable[..., Shop],
) -> None:
    shop, target = opened(large(1)), large(70)
    answers: list[bool] = []
    reasons: set[str] = set()

    def evict() -> None:
        for _ in range(5):
            answers.append(shop.catalog.published_models[1].evict(SLEEPS, SOON_S))
            shop.catalog.put(published("draft", zoo(5)))

    def meanwhile() -> None:
        threads = [threading.Thread(target=evict) for _ in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            reasons.add(reason(shop.fill("draft", zoo(71))))

    assert shop.fill("target", target, report=once(meanwhile)).ok
    assert answers == [True] * 40
    assert reasons <= {"not_serving", "verified"}
    assert contents(target) == contents(large(1))
    assert shop.fill("draft", zoo(71)).ok
