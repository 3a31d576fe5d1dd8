"""A folder of this host is a source like any other."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from netloader.config import Endpoint, Secret
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest
from netloader.fsm.reasons import Reason
from netloader.io import ClientOptions, Server, ServerOptions
from netloader.io.clock import monotonic
from netloader.io.describe import HASTY_S, ask_status, describe
from netloader.io.outcome import Attempt
from netloader.io.own_folder import confirmed
from netloader.io.store.cards import CARD
from tests.support.sockets import blackhole
from tests.unit.io.drivers import serve
from tests.unit.io.helpers import FAST, KIB, MIB, closed_port, sealed, serving
from tests.unit.io.own_folders import (
    IDENTITY,
    Lines,
    changed,
    empty,
    filled,
    kept,
    opened,
    same,
    weights,
    why,
)


def test_a_byte_that_changed_on_the_disk_is_named_and_taken_from_a_peer(tmp_path: Path) -> None:
    model = weights()
    with serving(model, IDENTITY) as server:
        folder = kept(server, tmp_path).folder
        changed(folder)
        with opened(folder) as own:
            alone = filled(empty(model), own.endpoint)
            into = empty(model)
            both = filled(into, own.endpoint, server.endpoint)

    assert not alone.ok
    assert alone.attempts[-1].reason is Reason.DIGEST_MISMATCH
    assert both.ok
    assert same(into, model)


def test_the_card_says_whose_weights_they_are(tmp_path: Path) -> None:
    with serving(weights(), IDENTITY) as server:
        folder = kept(server, tmp_path).folder
    with opened(folder) as own:
        outcome = filled(empty(weights()), own.endpoint, identity={**IDENTITY, "model": "other"})

    (attempt,) = outcome.attempts
    assert attempt.reason is Reason.IDENTITY_MISMATCH
    assert [difference.field for difference in attempt.differences] == ["model"]


def test_a_peer_that_is_slower_than_the_folder_is_left_to_others(
    tmp_path: Path, captured: Lines
) -> None:
    model = weights(mib=40)
    with serving(model, IDENTITY, segment_bytes=MIB) as server:
        folder = kept(server, tmp_path).folder
    into, patient = empty(model), replace(FAST, min_rate_bytes_per_s=MIB)
    slow = ServerOptions(segment_bytes=MIB, max_bandwidth=10**7, max_clients=1, deadlines=patient)
    with serve(model, IDENTITY, options=slow) as peer, opened(folder) as own:
        sealed(peer)
        outcome = filled(into, peer.endpoint, own.endpoint)

    assert outcome.ok
    assert same(into, model)
    (line,) = [each for each in captured if each["event"] == "netloader.source.spared"]
    assert line["netloader.source"] == str(peer.endpoint)
    assert line["netloader.own_rate"] >= line["netloader.peer_rate"] > 0
    moved = {str(attempt.source): attempt.nbytes for attempt in outcome.attempts}
    assert moved[str(own.endpoint)] > 0.8 * 80 * MIB


def test_a_peer_has_the_last_word(tmp_path: Path, captured: Lines) -> None:
    model, other = weights(), weights(seed=9)
    with serving(model, IDENTITY) as server:
        folder = kept(server, tmp_path).folder
    with opened(folder) as own:

        def left(peer: Endpoint) -> tuple[Endpoint, ...]:
            return confirmed((peer, own.endpoint), (own,), ClientOptions(deadlines=FAST))

        with serving(model, IDENTITY) as peer:
            assert own.endpoint in left(sealed(peer).endpoint)
        with serving(other, IDENTITY) as peer:
            assert left(sealed(peer).endpoint) == (peer.endpoint,)
        assert "the last word" in why(captured)
        with serving(model, IDENTITY, segment_bytes=128 * KIB) as peer:
            assert left(sealed(peer).endpoint) == (peer.endpoint,)
        assert "cannot be compared" in why(captured)
        assert own.endpoint in left(closed_port())


def test_a_peer_that_accepts_late_decides_before_a_folder(tmp_path: Path, captured: Lines) -> None:
    with serving(weights(), IDENTITY) as server:
        folder = kept(server, tmp_path).folder
    updated = ServerOptions(deadlines=FAST, segment_bytes=64 * KIB)
    with contextlib.ExitStack() as stack, opened(folder) as own:
        hole = stack.enter_context(contextlib.ExitStack())
        late = hole.enter_context(blackhole("127.0.0.1"))
        peers: list[Server] = []

        def accepts(_: Attempt) -> None:
            """Have the peer accept connections from now on: the first attempt came too early."""
            hole.close()
            if not peers:
                there = serve(weights(seed=9), IDENTITY, late.host, late.port, options=updated)
                peers.append(sealed(stack.enter_context(there)))

        asked = ClientOptions(deadlines=FAST, on_attempt=accepts)
        sources = (late, closed_port(), own.endpoint)
        found = describe(sources, Identity({"model": "tiny"}), asked)
        left = confirmed(found.sources, (own,), ClientOptions(deadlines=FAST))

    assert found.sources[0] == late
    assert left == (late, sources[1])
    assert "the last word" in why(captured)


def test_a_peer_that_does_not_accept_costs_its_deadline_once_before_the_folder(
    tmp_path: Path,
) -> None:
    with serving(weights(), IDENTITY) as server:
        folder = kept(server, tmp_path).folder
    patient = replace(FAST, connect_s=2.0)
    with blackhole("127.0.0.1") as dead, opened(folder) as own:
        begun = monotonic()
        options = ClientOptions(deadlines=patient)
        found = describe((dead, own.endpoint), Identity({"model": "tiny"}), options)
        took = monotonic() - begun

    assert patient.connect_s <= took < patient.connect_s + HASTY_S
    assert found.sources == (own.endpoint, dead)
    assert [attempt.source for attempt in found.silent] == [dead]


@pytest.mark.parametrize("token", [None, Secret("that of all instances")], ids=["plain", "token"])
def test_no_other_process_can_read_a_folder(tmp_path: Path, token: Secret | None) -> None:
    model = weights()
    with serving(model, IDENTITY) as server:
        folder = kept(server, tmp_path).folder
    into = empty(model)
    with opened(folder, token) as own:
        port = Endpoint(own.endpoint.host, own.endpoint.port)
        refused = filled(empty(model), port, token=token)
        asked = ask_status(port, {}, Manifest(()), ClientOptions(deadlines=FAST, token=token))
        outcome = filled(into, own.endpoint, token=token)

    why_not = Reason.AUTH_FAILED if token else Reason.AUTH_REQUIRED
    assert [attempt.reason for attempt in refused.attempts] == [why_not]
    assert isinstance(asked, Attempt)
    assert outcome.ok
    assert same(into, model)


def test_a_folder_without_digests_is_no_source(tmp_path: Path) -> None:
    with serving(weights(), IDENTITY) as server:
        folder = kept(server, tmp_path).folder
    (folder / CARD).unlink()
    with pytest.raises(Exception, match="save the weights again"), opened(folder):
        pass


def test_nothing_is_left_of_a_folder_that_was_a_source(tmp_path: Path) -> None:
    with serving(weights(), IDENTITY) as server:
        folder = kept(server, tmp_path).folder
    with opened(folder) as own:
        assert filled(empty(weights()), own.endpoint).ok
    assert not filled(empty(weights()), own.endpoint).ok
