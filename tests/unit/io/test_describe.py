"""Asking sources about themselves before a model is built."""

from dataclasses import replace

import pytest

from netloader.config import Secret
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest
from netloader.fsm.messages import Description
from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from netloader.io.describe import HASTY_S, Described, ask_status, describe
from netloader.io.outcome import Attempt
from netloader.io.store.module import ModuleStore
from tests.support.sockets import blackhole
from tests.unit.io.helpers import FAST, IDENTITY, Peer, asking, closed_port, sealed, serving, zoo

FACTS = {"tie_word_embeddings": "true"}
ANY = Identity({})


def test_a_source_describes_what_it_resolved() -> None:
    with (
        serving(zoo(1), facts=FACTS, max_clients=1) as server,
        Peer.call(server.endpoint) as peer,
    ):
        peer.offered()  # takes the only place, which a question does not need
        found = describe([server.endpoint], Identity({"model": "tiny"}), asking()).description

    assert found is not None
    assert found.facts == FACTS
    assert found.identity.hard == IDENTITY


def test_the_source_that_described_itself_is_tried_first_and_failed_ones_last() -> None:
    nobody, unasked = closed_port(), closed_port()
    with serving(zoo(1), facts=FACTS) as server:
        found = describe([nobody, server.endpoint, unasked], ANY, asking())

    assert found.description is not None
    assert found.sources == (server.endpoint, unasked, nobody)


def test_a_source_of_another_model_describes_nothing() -> None:
    with serving(zoo(1), facts=FACTS) as server:
        sources = (server.endpoint,)
        found = describe(sources, Identity({"model": "other"}), asking())

    assert found == Described(None, sources)
    assert describe([], ANY, asking()) == Described(None, ())


def test_a_description_needs_the_token() -> None:
    with serving(zoo(1), facts=FACTS, token=Secret("right")) as server:
        sources = [server.endpoint]
        assert describe(sources, ANY, asking()).description is None
        assert describe(sources, ANY, asking(token=Secret("wrong"))).description is None
        found = describe(sources, ANY, asking(token=Secret("right"))).description

    assert found is not None
    assert found.facts == FACTS


@pytest.mark.parametrize("answers", [True, False])
def test_a_source_that_does_not_accept_soon_is_asked_again_when_no_other_answers(
    answers: bool,
) -> None:
    patient = replace(FAST, connect_s=4.0)
    with blackhole("127.0.0.1") as dead, serving(zoo(1), facts=FACTS) as server:
        other = server.endpoint if answers else closed_port()
        begun = monotonic()
        found = describe([dead, other], ANY, asking(deadlines=patient))
        took = monotonic() - begun

    whole = 0.0 if answers else patient.connect_s
    assert HASTY_S + whole <= took < HASTY_S + whole + 1.5
    assert found.sources == ((other, dead) if answers else (dead, other))
    assert found.untried == ((dead,) if answers else ())
    assert [attempt.source for attempt in found.silent] == ([] if answers else [dead])


NOTHING = Manifest(())


def test_a_status_says_what_a_server_does_and_has() -> None:
    model = zoo(1)
    with serving(model, max_clients=1) as server, Peer.call(sealed(server).endpoint) as peer:
        peer.offered()  # takes the only place, which a question does not need
        told = ask_status(server.endpoint, {}, NOTHING, asking())
        assert isinstance(told, Description)
        again = ask_status(server.endpoint, {}, ModuleStore.of(model).manifest, asking())

    assert told.status is not None
    assert (told.status.state, told.status.roles) == ("offered", ("",))
    assert (told.status.clients, told.status.max_clients) == (1, 1)
    assert told.status.available == told.status.segments > 1
    assert told.manifest == ModuleStore.of(model).manifest
    assert isinstance(again, Description)
    assert again.manifest is None, "the client has it"
    assert again.status is not None
    assert again.status.root == told.status.root != ""


def test_the_root_tells_two_models_apart() -> None:
    def root(seed: int) -> str:
        with serving(zoo(seed)) as server:
            told = ask_status(sealed(server).endpoint, {}, NOTHING, asking())
        assert isinstance(told, Description)
        assert told.status is not None
        return told.status.root

    assert root(1) == root(1) != root(2)


def test_a_status_of_a_withdrawn_model_says_why() -> None:
    with serving(zoo(1)) as server:
        server.withdraw(None, "maintenance")
        told = ask_status(server.endpoint, {}, NOTHING, asking())
    assert isinstance(told, Description)
    assert told.status is not None
    assert (told.status.state, told.status.withdrawn) == ("lost", "maintenance")


def test_a_status_needs_the_token_and_a_server() -> None:
    with serving(zoo(1), token=Secret("right")) as server:
        refused = ask_status(server.endpoint, {}, NOTHING, asking())
        known = ask_status(server.endpoint, {}, NOTHING, asking(token=Secret("right")))
    missed = ask_status(closed_port(), {}, NOTHING, asking())

    assert isinstance(refused, Attempt)
    assert refused.reason is Reason.AUTH_REQUIRED
    assert isinstance(known, Description)
    assert isinstance(missed, Attempt)
    assert missed.reason is Reason.UNREACHABLE
