"""Which part of a folder is a rank's, and what the log says of those that are not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netloader.config import FolderEndpoint
from netloader.fsm.identity import Identity
from netloader.io.saving import save
from netloader.log import capture
from netloader.vllm_plugin.config.settings import Settings
from netloader.vllm_plugin.identity.local_model import LocalModel
from netloader.vllm_plugin.identity.reading import read_config
from netloader.vllm_plugin.load.looking import Sources, look
from netloader.vllm_plugin.load.receiving import Receiver
from netloader.vllm_plugin.serve.saving import Saving
from tests.unit.io.helpers import serving
from tests.unit.io.own_folders import changed, published, weights
from tests.unit.vllm_plugin.helpers import Lines, line_of, plan
from tests.unit.vllm_plugin.load.test_plan import LOGGER, model_config, vllm_config


def local() -> LocalModel:
    return read_config(vllm_config(), model_config(), None)


def saved(under: Path, changes: Mapping[str, str] | None = None, seed: int = 1) -> Path:
    """The folder that a rank of this model has saved, or of one that differs."""
    identity = Identity({**local().early.hard, **(changes or {})})
    with serving(weights(seed), identity) as server:
        saving = Saving.of(under, identity)
        return save(published(server), saving.under, saving.name).folder


def found(*sources: object) -> tuple[Sources, Lines]:
    settings = Settings.parse({"SOURCE": list(sources)})
    with capture() as lines:
        looked = look(local(), settings, LOGGER, serves=False)
    for folder in looked.folders:
        folder.close()
    return looked, lines


def names(looked: Sources) -> list[str]:
    return [str(source) for source in looked.now]


def why(lines: Lines) -> str:
    return str(line_of(lines, "netloader.folder.refused")["netloader.detail"])


def test_the_rank_s_own_part_is_found_among_others_and_comes_after_the_peers(
    tmp_path: Path,
) -> None:
    saved(tmp_path, {"tensor_parallel": "1 of 2"})
    mine = saved(tmp_path)
    saved(tmp_path, {"role": "draft"})

    looked, _ = found(f"file:{tmp_path}", "10.0.0.1:19374")

    assert names(looked) == ["10.0.0.1:19374", f"file:{mine}"]
    assert isinstance(looked.now[1], FolderEndpoint)
    assert looked.lookup is None


def test_the_folder_of_another_rank_is_named_with_both_values(tmp_path: Path) -> None:
    saved(tmp_path, {"tensor_parallel": "1 of 2"})

    looked, lines = found(f"file:{tmp_path}", "10.0.0.1:19374")

    assert names(looked) == ["10.0.0.1:19374"]
    assert f"file:{tmp_path}: no part of it is this rank's" in why(lines)
    assert "tensor_parallel" in why(lines)
    assert "'1 of 2'" in why(lines)
    assert "1 of 2" in looked.unfound


def test_a_folder_that_cannot_be_used_is_a_source_less(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    damaged = saved(tmp_path / "damaged")
    (damaged / "netloader.json").write_text("{")
    short = saved(tmp_path / "short")
    (short / "model.safetensors").write_bytes(b"short")

    for name, told in (("empty", "no *.safetensors"), ("damaged", "cannot be read"), ("short", "")):
        looked, lines = found(f"file:{tmp_path / name}")
        assert names(looked) == []
        assert f"file:{tmp_path / name}: " in why(lines)
        assert told in why(lines)


def test_a_folder_that_is_not_there_yet_is_no_warning(tmp_path: Path) -> None:
    looked, lines = found(f"file:{tmp_path}/none", "10.0.0.1:19374")

    assert names(looked) == ["10.0.0.1:19374"]
    line: Any = line_of(lines, "netloader.folder.refused")
    assert line["severity"] == "INFO"
    assert "nothing is there" in line["netloader.detail"]


def test_a_folder_whose_bytes_a_load_has_refused_is_written_again_by_its_save(
    tmp_path: Path,
) -> None:
    mine, identity = saved(tmp_path), Identity(local().early.hard)
    file = mine / "model.safetensors"
    right = file.read_bytes()
    changed(mine)
    settings = Settings.parse({"SOURCE": f"file:{tmp_path}"})
    looked = look(local(), settings, LOGGER, serves=False)
    load = plan(sources=looked.now, folders=looked.folders)
    with load.using_folders():
        named = list(weights(seed=3).items())
        outcome = Receiver(settings, LOGGER, False).receive(named, load, lambda: identity)
    assert outcome is not None
    assert not outcome.ok

    with serving(weights(), identity) as server:
        saving = Saving.of(tmp_path, identity, load.without_folders.damaged)
        saving.begin(published(server), LOGGER).join(60)

    assert file.read_bytes() == right


def test_models_and_ranks_have_folders_of_their_own() -> None:
    mine = Identity(local().early.hard)
    others = [
        Identity({**mine.hard, name: other})
        for name, other in (
            ("model", "../a b"),
            ("model", "m." + "b" * 63),
            ("tensor_parallel", "1 of 2"),
            ("role", "draft"),
        )
    ]
    names = {Saving.of(Path("/x"), identity).name for identity in (mine, *others)}

    assert len(names) == 5
    assert not any(name.startswith(".") or "/" in name or " " in name for name in names)
