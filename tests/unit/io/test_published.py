"""What a server publishes: digests that hold, places that are counted, offers that can end."""

import os
import threading

import pytest
from torch import nn

from netloader.config import Secret
from netloader.errors import LocalProtocolError
from netloader.fsm import published_events as ev
from netloader.fsm.identity import Identity
from netloader.fsm.published import ModelState
from netloader.io.background import in_background
from netloader.io.catalog import Catalog
from netloader.io.comparing import WithdrawnError, Work
from netloader.io.published import PublishedModel
from netloader.io.publishing import ServerOptions, publish
from netloader.io.store import digests
from netloader.io.store.digests import digest_of
from netloader.io.store.module import ModuleStore
from tests.unit.io.helpers import ALGORITHM, IDENTITY, KIB, SOON_S, eventually, module_of, random


def published_of(model: nn.Module, max_clients: int = 2) -> PublishedModel:
    options = ServerOptions(segment_bytes=64 * KIB, max_clients=max_clients)
    return publish(ModuleStore.of(model), Identity(IDENTITY), options)


def model() -> nn.Module:
    return module_of(a=random(20_000, seed=1), b=random(20_000, seed=2), c=random(10, seed=3))


def test_digests_are_those_of_the_segments() -> None:
    published = published_of(model())
    assert published.digests(0) is None

    published.seal()

    views = map(published.weights.views, published.segments)
    assert published.digests(0) == tuple(digest_of(ALGORITHM, view) for view in views)
    assert len(published.segments) == 3


def test_known_digests_are_taken_as_they_are() -> None:
    published = published_of(model())
    published.seal(("one", "two", "three"))

    assert published.digests(0) == ("one", "two", "three")


def test_sealing_in_the_background_gives_the_same_digests() -> None:
    loud, quiet = published_of(model()), published_of(model())
    loud.seal()
    thread = quiet.seal_quietly()

    assert quiet.digests(SOON_S) == loud.digests(0)
    thread.join(SOON_S)
    assert not thread.is_alive()


def test_what_is_withdrawn_before_it_is_sealed_has_no_digests_and_nothing_to_wait_for() -> None:
    published = published_of(model())
    published.withdraw("the engine sleeps")
    published.seal_quietly().join(SOON_S)

    assert published.digests(0) == ()


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
    published = published_of(model())
    published.seal()
    published.audit()

    assert published.withdrawn == ""


def test_an_audit_of_changed_weights_withdraws_and_names_them() -> None:
    changed = model()
    published = published_of(changed)
    published.seal()
    changed.get_parameter("c").data[3] += 1

    published.audit()

    assert "changed after they were published" in published.withdrawn
    assert "c" in published.withdrawn.rpartition(": ")[2].split(", ")
    assert "a" not in published.withdrawn.rpartition(": ")[2].split(", ")


def test_an_audit_before_the_seal_has_nothing_to_compare() -> None:
    published = published_of(model())
    published.audit()
    published.seal()

    assert published.withdrawn == ""


def test_withdrawing_wakes_whoever_waits_for_digests() -> None:
    published = published_of(model())
    found: list[tuple[str, ...] | None] = []
    waiter = threading.Thread(target=lambda: found.append(published.digests(SOON_S * 10)))
    waiter.start()

    published.withdraw("the engine sleeps")
    waiter.join(SOON_S)

    assert not waiter.is_alive()
    assert published.withdrawn == "the engine sleeps"


def test_places_are_counted() -> None:
    published = published_of(model(), max_clients=2)
    assert [published.admit() for _ in range(3)] == [True, True, False]

    published.leave()
    assert published.admit()
    assert not published.admit()


def test_a_place_that_was_never_taken_cannot_be_given_back() -> None:
    with pytest.raises(LocalProtocolError, match="more places were given back"):
        published_of(model()).leave()


# -- the fence -----------------------------------------------------------------------------------


def test_whoever_reads_when_it_is_withdrawn_may_end_and_nobody_begins() -> None:
    published = published_of(model())
    with published.reading():
        published.withdraw("weights are updated")
        assert not published.quiet(0.01)
        with pytest.raises(WithdrawnError, match="weights are updated"), published.reading():
            pass

    assert published.quiet(0)


def test_a_place_keeps_a_withdrawn_published_from_being_quiet_and_none_is_given() -> None:
    published = published_of(model())
    assert published.admit()
    published.withdraw("weights are updated")

    assert not published.admit()
    assert not published.quiet(0.01)
    leaving = threading.Timer(0.05, published.leave)
    leaving.start()
    assert published.quiet(SOON_S)
    leaving.join()


def test_a_published_is_not_quiet_before_its_last_segment_is_hashed(
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

    monkeypatch.setitem(digests.ALGORITHMS, ALGORITHM, Waiting)
    published = published_of(model())
    thread = published.seal_quietly()
    assert hashing.wait(SOON_S)
    published.withdraw("the engine sleeps")

    assert not published.quiet(0.01)
    go_on.set()
    assert published.quiet(SOON_S)
    thread.join(SOON_S)


def test_after_a_fence_weights_are_offered_if_an_audit_finds_them_as_before() -> None:
    same, other = model(), model()
    kept, lost = published_of(same), published_of(other)
    for each in (kept, lost):
        each.seal()
        each.fence("the engine sleeps")
        each.fence("twice")
        each.unfence()
        assert (each.state, each.withdrawn) == (ModelState.FENCED, "twice")
    other.get_parameter("c").data[3] += 1
    for each in (kept, lost):
        each.unfence()

    assert eventually(lambda: kept.state is ModelState.OFFERED)
    assert kept.digests(0) == lost.digests(SOON_S)
    assert lost.state is ModelState.LOST
    assert "changed after they were published, among: " in lost.withdrawn


def test_an_audit_that_is_under_way_may_have_passed_a_change_so_the_owner_gets_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on, audits = threading.Event(), threading.Event(), list[Work]()
    worked = PublishedModel._worked

    def held(self: PublishedModel, work: Work, workers: int) -> ev.Event:
        audits.append(work)
        begun.set()
        assert go_on.wait(SOON_S)
        return worked(self, work, workers)

    published = published_of(model())
    published.seal()
    monkeypatch.setattr(PublishedModel, "_worked", held)
    published.doubt()
    assert begun.wait(SOON_S)
    owner = threading.Thread(target=published.audit)
    owner.start()
    go_on.set()
    owner.join(SOON_S)

    assert not owner.is_alive()
    assert len(audits) == 2


def test_what_is_withdrawn_while_newer_weights_are_prepared_is_not_renewed() -> None:
    def withdraw(published: PublishedModel, why: str) -> bool:
        assert why == "found"
        published.withdraw("maintenance")
        return catalog.replace(published, newer)

    options, identity = ServerOptions(), Identity({"role": "target"})
    old = publish(ModuleStore.of(model()), identity, options, on_change=withdraw)
    newer, catalog = published("target"), Catalog((old,))
    old.seal()
    old.changed("found")

    assert catalog.published_models == (old,)
    assert (old.withdrawn, old.renewed(0)) == ("maintenance", False)


# -- the catalog -----------------------------------------------------------------------------------


def published(role: str, token: str | None = None) -> PublishedModel:
    options = ServerOptions(token=None if token is None else Secret(token))
    return publish(ModuleStore.of(model()), Identity({"role": role}), options)


def test_a_published_takes_the_place_of_the_one_with_its_role() -> None:
    first, draft, second = published("target"), published("draft"), published("target")
    catalog = Catalog((first,))
    before = catalog.published_models

    catalog.put(draft)
    catalog.put(second)

    assert before == (first,)
    assert catalog.published_models == (second, draft)


def test_a_token_for_some_models_of_a_port_is_refused_without_showing_it() -> None:
    one, open_to_all = published("target", "hush"), published("mtp")
    catalog = Catalog((one,))

    with pytest.raises(ValueError, match="ask for a token, or none") as raised:
        catalog.put(open_to_all)
    assert "hush" not in str(raised.value)
    with pytest.raises(ValueError, match="ask for a token, or none"):
        Catalog((one, open_to_all))
    assert catalog.published_models == (one,)


def test_a_catalog_retires_what_was_replaced_as_well() -> None:
    first, second = published("target"), published("target")
    catalog = Catalog((first,))
    catalog.put(second)

    catalog.retire("the server is closing")

    assert {first.withdrawn, second.withdrawn} == {"the server is closing"}
