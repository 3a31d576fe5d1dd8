"""Asking sources about themselves before a model is built."""

from netloader.config import Secret
from netloader.fsm.identity import Identity
from netloader.io.describe import Described, describe
from tests.unit.io.helpers import IDENTITY, Peer, asking, closed_port, serving, zoo

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
