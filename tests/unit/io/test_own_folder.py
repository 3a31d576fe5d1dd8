"""What was loaded is saved, and a folder of this host is a source like any other."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from netloader.config import Endpoint, Secret
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest
from netloader.fsm.reasons import Reason
from netloader.io import ClientOptions, Outcome, Server, ServerOptions, fill
from netloader.io.clock import monotonic
from netloader.io.describe import HASTY_S, ask_status, describe
from netloader.io.outcome import Attempt
from netloader.io.own_folder import OwnFolder, confirmed
from netloader.io.published import PublishedModel
from netloader.io.saving import Saved, SaveError, save
from netloader.io.store.cards import CARD, card_in
from netloader.io.store.parts import open_part
from tests.support.sockets import blackhole
from tests.unit.io.drivers import serve
from tests.unit.io.helpers import FAST, KIB, MIB, closed_port, random, sealed, serving

IDENTITY = {"model": "tiny", "role": "target"}
Tensors = dict[str, torch.Tensor]
Lines = list[dict[str, Any]]


def weights(seed: int = 1, mib: int = 1) -> Tensors:
    return {f"layer.{i}": random(mib * MIB // 4, seed=seed + i) for i in range(2)}


def published(server: Server) -> PublishedModel:
    opened = sealed(server)._open
    assert opened is not None
    (model,) = opened[1].published_models
    return model


def kept(server: Server, under: Path) -> Saved:
    return save(published(server), under, "tiny")


@contextlib.contextmanager
def opened(folder: Path, token: Secret | None = None) -> Iterator[OwnFolder]:
    own = OwnFolder(open_part(folder), ServerOptions(deadlines=FAST, token=token))
    try:
        yield own
    finally:
        own.close()


def filled(
    into: Tensors, *sources: Endpoint, identity: dict[str, str] = IDENTITY, **options: Any
) -> Outcome:
    return fill(into, sources, identity, ClientOptions(deadlines=FAST, **options))


def empty(like: Tensors) -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in like.items()}


def same(one: Tensors, other: Tensors) -> bool:
    return all(
        torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one
    )


def changed(folder: Path, at: int = -1) -> None:
    """Change one byte of a folder's weights, as a disk may."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def fills(folder: Path, model: Tensors, identity: dict[str, str] = IDENTITY) -> bool:
    """Whether a folder alone fills a model."""
    into = empty(model)
    with opened(folder) as own:
        return filled(into, own.endpoint, identity=identity).ok and same(into, model)


def everything(under: Path) -> list[str]:
    return sorted(path.name for path in under.iterdir() if not path.name.endswith(".lock"))


def why(captured: Lines) -> str:
    """Why a folder was refused last."""
    refused = [line for line in captured if line["event"] == "netloader.folder.refused"]
    return str(refused[-1]["netloader.detail"])


# -- saving --------------------------------------------------------------------------------------


def test_what_is_saved_fills_a_model_as_its_server_did(tmp_path: Path) -> None:
    model = weights()
    with serving(model, IDENTITY) as server:
        saved = kept(server, tmp_path)
    assert everything(tmp_path) == [saved.folder.name]

    into = empty(model)
    with opened(saved.folder) as own:
        outcome = filled(into, own.endpoint)

    assert outcome.ok
    assert str(outcome.source) == f"file:{saved.folder}"
    assert same(into, model)


def test_the_same_weights_are_left_as_they_are_and_others_take_their_place(tmp_path: Path) -> None:
    with serving(weights(), IDENTITY) as server:
        first = kept(server, tmp_path)
        inode = (first.folder / "model.safetensors").stat().st_ino
        again = kept(server, tmp_path)
    assert (again.folder, again.nbytes) == (first.folder, 0)
    assert (first.folder / "model.safetensors").stat().st_ino == inode
    other = tmp_path / "another-0123"
    shutil.copytree(first.folder, other)

    with serving(weights(seed=7), IDENTITY) as server:
        newer = kept(server, tmp_path)

    assert newer.removed == (first.folder,)
    assert everything(tmp_path) == sorted([other.name, newer.folder.name])


def test_bytes_that_are_not_those_of_the_digests_are_never_a_folder(tmp_path: Path) -> None:
    model = weights()
    with serving(model, IDENTITY) as server:
        on_offer = published(server)
        model["layer.1"].data[-1] = 0.5  # written behind torch's back: no counter moves
        with pytest.raises(SaveError, match="does not match its published digest"):
            save(on_offer, tmp_path, "tiny")
    assert everything(tmp_path) == []


def test_without_room_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 30))
    with (
        serving(weights(), IDENTITY) as server,
        pytest.raises(SaveError, match=r"bytes free.*room"),
    ):
        kept(server, tmp_path)
    assert everything(tmp_path) == []


@pytest.mark.parametrize("fault", ["no file", "a short file", "a damaged card", "no card", "bare"])
def test_a_folder_that_cannot_be_used_is_written_again(tmp_path: Path, fault: str) -> None:
    model = weights()
    with serving(model, IDENTITY) as server:
        folder = kept(server, tmp_path).folder
        card, file = folder / CARD, folder / "model.safetensors"
        match fault:
            case "no file":
                file.unlink()
            case "a short file":
                file.write_bytes(file.read_bytes()[:-1])
            case "a damaged card":
                found = card_in(folder)
                assert found is not None
                assert found.status is not None
                replace(found, status=replace(found.status, root="")).write(folder)
            case "no card":
                card.unlink()
            case _:
                card.unlink()
                file.write_bytes(b"something else")
        again = kept(server, tmp_path)

    assert (again.folder, again.nbytes) == (folder, 2 * MIB)
    assert everything(tmp_path) == [folder.name]
    assert fills(folder, model)


def test_a_folder_of_which_bytes_were_refused_is_written_again(tmp_path: Path) -> None:
    model = weights()
    with serving(model, IDENTITY) as server:
        folder = kept(server, tmp_path).folder
        changed(folder)
        with opened(folder) as own:
            own.heard(filled(empty(model), server.endpoint).attempts)
            by_peer = own.damaged
            own.heard(filled(empty(model), own.endpoint).attempts)
            assert (by_peer, own.damaged) == (False, True)
        save(published(server), tmp_path, "tiny", {folder.resolve()})

    assert fills(folder, model)


def test_the_card_says_what_is_known_of_the_same_weights_now(tmp_path: Path) -> None:
    model, newer = weights(), {**IDENTITY, "vllm": "0.33.0"}
    with serving(model, IDENTITY) as server:
        folder = kept(server, tmp_path).folder
    with serving(model, newer) as server:
        assert kept(server, tmp_path).nbytes == 0

    assert fills(folder, model, newer)


def test_a_doubt_of_a_client_leaves_the_card_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = weights()
    with serving(model, IDENTITY) as server:
        on_offer = published(server)
        digests = on_offer.digests
        # As while the weights are compared with them: they are not ready at once.
        monkeypatch.setattr(on_offer, "digests", lambda s: digests(s) if s else None)
        folder = save(on_offer, tmp_path, "tiny").folder

    assert fills(folder, model)


def test_a_folder_that_cannot_be_removed_is_told_and_the_new_one_is_there(tmp_path: Path) -> None:
    model = weights(seed=7)
    with serving(weights(), IDENTITY) as server:
        first = kept(server, tmp_path).folder
    stuck = first.rename(tmp_path / f"tiny-{'0' * 250}")  # no longer name is possible
    with serving(model, IDENTITY) as server:
        saved, again = kept(server, tmp_path), kept(server, tmp_path)

    for each in (saved, again):
        assert each.removed == ()
        (left,) = each.left
        assert left.startswith(f"{stuck} cannot be removed: ")
    assert fills(saved.folder, model)


def test_an_older_folder_that_was_left_is_removed_when_there_is_nothing_to_write(
    tmp_path: Path,
) -> None:
    with serving(weights(), IDENTITY) as server:
        saved = kept(server, tmp_path)
        older = tmp_path / "tiny-0123"
        shutil.copytree(saved.folder, older)
        again = kept(server, tmp_path)

    assert (again.nbytes, again.removed) == (0, (older,))
    assert everything(tmp_path) == [saved.folder.name]


def test_one_process_at_a_time_saves_a_model_and_clears_what_a_killed_one_left(
    tmp_path: Path,
) -> None:
    left = tmp_path / ".tiny-0123.abcd.netloader"
    left.mkdir()
    with serving(weights(), IDENTITY) as server:
        with (tmp_path / ".tiny.lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(SaveError, match="another process"):
                kept(server, tmp_path)
        assert left.exists()
        kept(server, tmp_path)
    assert not left.exists()


def test_weights_that_are_to_change_are_waited_for_by_nobody(tmp_path: Path) -> None:
    with serving(weights(), IDENTITY) as server:
        on_offer = published(server)
        server.withdraw("target", "they are updated")
        with pytest.raises(SaveError, match="they are updated"):
            save(on_offer, tmp_path, "tiny")
    assert everything(tmp_path) == []


# -- a folder as a source ------------------------------------------------------------------------


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
