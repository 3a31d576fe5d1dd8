"""What a server publishes: digests that hold, places that are counted, offers that can end."""

import os
import threading

import pytest
from torch import nn

from netloader.config import Secret
from netloader.errors import LocalProtocolError
from netloader.fsm.identity import Identity
from netloader.io import digests
from netloader.io.background import in_background
from netloader.io.digests import digest_of
from netloader.io.publication import Publication, Shelf, WithdrawnError
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
    with pytest.raises(LocalProtocolError, match="nobody has"):
        publication_of(model()).leave()


# -- the fence -----------------------------------------------------------------------------------


def test_whoever_reads_when_it_is_withdrawn_may_end_and_nobody_begins() -> None:
    publication = publication_of(model())
    with publication.reading():
        publication.withdraw("weights are updated")
        assert not publication.quiet(0.01)
        with pytest.raises(WithdrawnError, match="weights are updated"), publication.reading():
            pass

    assert publication.quiet(0)


def test_a_place_keeps_a_withdrawn_publication_from_being_quiet_and_none_is_given() -> None:
    publication = publication_of(model())
    assert publication.admit()
    publication.withdraw("weights are updated")

    assert not publication.admit()
    assert not publication.quiet(0.01)
    leaving = threading.Timer(0.05, publication.leave)
    leaving.start()
    assert publication.quiet(SOON_S)
    leaving.join()


def test_a_publication_is_not_quiet_before_its_last_segment_is_hashed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashing, go_on = threading.Event(), threading.Event()

    class Waiting:
        """Holds the memory it is given until the test lets go."""

        def __init__(self, threads: int) -> None:
            del threads

        def update(self, data: memoryview, /) -> None:
            hashing.set()
            go_on.wait(SOON_S)

        def hexdigest(self) -> str:
            return ""

    monkeypatch.setitem(digests.ALGORITHMS, "blake3", Waiting)
    publication = publication_of(model())
    thread = publication.seal_quietly()
    assert hashing.wait(SOON_S)
    publication.withdraw("the engine sleeps")

    assert not publication.quiet(0.01)
    go_on.set()
    assert publication.quiet(SOON_S)
    thread.join(SOON_S)


# -- the shelf -----------------------------------------------------------------------------------


def published(role: str, token: str | None = None) -> Publication:
    options = ServerOptions(token=None if token is None else Secret(token))
    return publish(Weights.of(model()), Identity({"role": role}), options)


def test_a_publication_takes_the_place_of_the_one_with_its_role() -> None:
    first, draft, second = published("target"), published("draft"), published("target")
    shelf = Shelf((first,))
    before = shelf.publications

    shelf.put(draft)
    shelf.put(second)

    assert before == (first,)
    assert shelf.publications == (second, draft)


def test_a_shelf_without_anything_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Shelf(())


def test_two_tokens_on_one_port_are_refused_without_showing_them() -> None:
    one, other, open_to_all = published("target", "hush"), published("draft", "x"), published("mtp")
    shelf = Shelf((one,))

    for wrong in (other, open_to_all):
        with pytest.raises(ValueError, match="the same token") as raised:
            shelf.put(wrong)
        assert "hush" not in str(raised.value)
    with pytest.raises(ValueError, match="the same token"):
        Shelf((one, other))
    assert shelf.publications == (one,)


def test_a_shelf_withdraws_what_was_replaced_as_well() -> None:
    first, second = published("target"), published("target")
    shelf = Shelf((first,))
    shelf.put(second)

    shelf.withdraw("the server is closing")

    assert {first.withdrawn, second.withdrawn} == {"the server is closing"}
