"""What a server publishes: digests that hold, places that are counted, offers that can end."""

import os
import threading

import pytest
from torch import nn

from netloader.fsm.identity import Identity
from netloader.io.digests import digest_of
from netloader.io.publication import Publication, in_background
from netloader.io.server import ServerOptions, publish
from netloader.io.weights import Weights
from tests.unit.io.helpers import IDENTITY, KIB, SOON_S, module_of, random


def publication_of(model: nn.Module, max_clients: int = 2) -> Publication:
    options = ServerOptions(segment_bytes=64 * KIB, max_clients=max_clients)
    return publish(Weights.of(model), Identity(IDENTITY), options)


def model() -> nn.Module:
    return module_of(a=random(20_000, seed=1), b=random(20_000, seed=2), c=random(10, seed=3))


def test_digests_are_those_of_the_segments() -> None:
    publication = publication_of(model())
    assert publication.digests(0) is None

    publication.seal()

    views = map(publication.weights.views, publication.segments)
    assert publication.digests(0) == tuple(digest_of("blake3", view) for view in views)
    assert len(publication.segments) == 3


def test_known_digests_are_taken_as_they_are() -> None:
    publication = publication_of(model())
    publication.seal(("one", "two", "three"))

    assert publication.digests(0) == ("one", "two", "three")


def test_sealing_in_the_background_gives_the_same_digests() -> None:
    loud, quiet = publication_of(model()), publication_of(model())
    loud.seal()
    thread = quiet.seal_quietly()

    assert quiet.digests(SOON_S) == loud.digests(0)
    thread.join(SOON_S)
    assert not thread.is_alive()


def test_background_work_is_nicer_than_the_engine() -> None:
    seen: list[int] = []
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def look() -> None:
        inner = threading.Thread(
            target=lambda: seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        )
        inner.start()
        inner.join()

    in_background("netloader-test", look).join(SOON_S)

    assert seen[0] > mine


def test_an_audit_of_unchanged_weights_changes_nothing() -> None:
    publication = publication_of(model())
    publication.seal()
    publication.audit()

    assert publication.withdrawn == ""


def test_an_audit_of_changed_weights_withdraws_and_names_them() -> None:
    changed = model()
    publication = publication_of(changed)
    publication.seal()
    changed.get_parameter("c").data[3] += 1

    publication.audit()

    assert "changed after they were published" in publication.withdrawn
    assert "c" in publication.withdrawn.rpartition(": ")[2].split(", ")
    assert "a" not in publication.withdrawn.rpartition(": ")[2].split(", ")


def test_an_audit_before_the_seal_has_nothing_to_compare() -> None:
    publication = publication_of(model())
    publication.audit()
    publication.seal()

    assert publication.withdrawn == ""


def test_withdrawing_wakes_whoever_waits_for_digests() -> None:
    publication = publication_of(model())
    found: list[tuple[str, ...] | None] = []
    waiter = threading.Thread(target=lambda: found.append(publication.digests(SOON_S * 10)))
    waiter.start()

    publication.withdraw("the engine sleeps")
    waiter.join(SOON_S)

    assert not waiter.is_alive()
    assert publication.withdrawn == "the engine sleeps"


def test_places_are_counted() -> None:
    publication = publication_of(model(), max_clients=2)
    assert [publication.admit() for _ in range(3)] == [True, True, False]

    publication.leave()
    assert publication.admit()
    assert not publication.admit()


def test_a_place_that_was_never_taken_cannot_be_given_back() -> None:
    with pytest.raises(ValueError, match="released too many"):
        publication_of(model()).leave()
