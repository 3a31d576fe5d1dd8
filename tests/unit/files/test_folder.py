"""What a server reads of a folder, and what it leaves out."""

import os
from pathlib import Path

import pytest

from netloader.files.folder import FolderFiles
from netloader.files.rules import DATA, MIB, WITH_CODE, FilesError, Rules
from netloader.fsm.manifest import Extent
from netloader.log import capture, get_logger


def read(folder: Path, rules: Rules = DATA) -> FolderFiles:
    return FolderFiles.read(folder, "tiny", "served", rules)


def contents(files: FolderFiles) -> dict[str, bytes]:
    found = {}
    for index, spec in enumerate(files.store.manifest.tensors):
        view = files.store.host_view(Extent(index, 0, spec.nbytes)) if spec.nbytes else None
        found[spec.name] = bytes(view or b"")
    return found


def written(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_what_an_instance_needs_is_read_and_weights_are_not(tmp_path: Path) -> None:
    written(tmp_path, config_dot_json="{}", tokenizer_dot_model="t", empty_dot_txt="")
    written(tmp_path, modeling_dot_py="code", model_dot_safetensors="w", pytorch_dot_bin="w")
    written(tmp_path, _dot_secret="s", _dot_git__config_dot_json="{}")
    written(tmp_path, pool__config_dot_json="[1]", checkpoint__deep__config_dot_json="[2]")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "config.json").write_text("{}")
    names = ["config.json", "empty.txt", "pool/config.json", "tokenizer.model"]
    assert [*contents(read(tmp_path))] == names
    assert contents(read(tmp_path))["pool/config.json"] == b"[1]"
    assert {*contents(read(tmp_path, WITH_CODE))} == {*names, "modeling.py"}


def test_links_lead_nowhere_but_to_the_blobs_of_a_snapshot(tmp_path: Path) -> None:
    outside = written(tmp_path / "outside", secret_dot_json="s") / "secret.json"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    written(snapshot, config_dot_json="{}")
    blob = written(tmp_path / "models--a--b" / "blobs", abcd="blob") / "abcd"
    (snapshot / "tokenizer.json").symlink_to(os.path.relpath(blob, snapshot))
    (snapshot / "stolen.json").symlink_to(outside)
    (snapshot / "gone.json").symlink_to(tmp_path / "nothing")
    (snapshot / "sub").symlink_to(outside.parent)
    os.mkfifo(snapshot / "pipe.json")
    assert contents(read(snapshot)) == {"config.json": b"{}", "tokenizer.json": b"blob"}
    plain = written(tmp_path / "plain", config_dot_json="{}")
    (plain / "tokenizer.json").symlink_to(blob)
    assert [*contents(read(plain))] == ["config.json"]


def test_what_does_not_fit_is_left_out_and_named(tmp_path: Path) -> None:
    written(tmp_path, config_dot_json="{}")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(129 * MIB)
    (tmp_path / "a b.json").write_text("{}")
    (tmp_path / "Config.json").write_text("{}")
    files = read(tmp_path)
    assert [*contents(files)] == ["Config.json"]
    assert {*files.left_out} == {"a b.json", "config.json", "huge.json"}
    with capture() as lines:
        files.tell(get_logger("server"))
    assert "huge.json has 135266304 bytes" in lines[0]["netloader.files.left_out"]
    assert lines[0]["severity"] == "INFO"
    few = read(tmp_path, Rules(most_files=0 + 1))
    assert len(few.store.manifest.tensors) == 1


def test_a_folder_without_such_files_is_an_error_that_names_it(tmp_path: Path) -> None:
    written(tmp_path, model_dot_safetensors="w", config_dot_json="")
    with pytest.raises(FilesError, match=str(tmp_path)):
        read(tmp_path)


def test_later_changes_of_the_folder_do_not_matter(tmp_path: Path) -> None:
    files = read(written(tmp_path, config_dot_json="old"))
    (tmp_path / "config.json").write_text("new")
    assert contents(files) == {"config.json": b"old"}
