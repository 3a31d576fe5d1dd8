"""What was loaded is saved, whole, and what cannot be used is written again."""

import fcntl
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from netloader.io.saving import SaveError, save
from netloader.io.store.cards import CARD, card_in
from tests.unit.io.helpers import MIB, serving
from tests.unit.io.own_folders import (
    IDENTITY,
    changed,
    empty,
    everything,
    filled,
    fills,
    kept,
    opened,
    published,
    same,
    weights,
)


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
