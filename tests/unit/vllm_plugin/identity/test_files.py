"""What of a model's folder counts, what it is known by, and what was read of it."""

import ast
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from netloader.vllm_plugin.identity.files import WATCH, Files, Kind, digest, folder_of, kind_of


def write(folder: Path, **texts: str) -> Path:
    """A folder with these files; `__` in a name is a dot, `___` a slash."""
    for name, text in texts.items():
        file = folder / name.replace("___", "/").replace("__", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def model_of(folder: object, **changes: Any) -> Any:
    return SimpleNamespace(model=str(folder), revision=None, **changes)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("config.json", Kind.RESOLVED),
        ("generation_config.json", Kind.RESOLVED),
        ("model.safetensors.index.json", Kind.RESOLVED),
        ("preprocessor_config.json", Kind.PROCESSOR),
        ("video_preprocessor_config.json", Kind.PROCESSOR),
        ("processor_config.json", Kind.PROCESSOR),
        ("modeling_tiny.py", Kind.CODE),
        ("quant_model_description.json", Kind.QUANTIZATION),
        ("hf_quant_config.json", Kind.QUANTIZATION),
        ("tokenizer.json", Kind.TEXT),
        ("tokenizer.model", Kind.TEXT),
        ("chat_template.jinja", Kind.TEXT),
        ("additional_chat_templates/tool_use.jinja", Kind.TEXT),
        ("sentence_bert_config.json", Kind.TEXT),
        ("README.md", Kind.OTHER),
        ("LICENSE", Kind.OTHER),
        ("picture.png", Kind.OTHER),
        (".gitattributes", Kind.OTHER),
        ("trainer_state.json", Kind.OTHER),
    ],
)
def test_a_files_name_says_what_it_decides(name: str, kind: Kind) -> None:
    assert kind_of(name) is kind


def test_json_is_compared_by_what_it_says(tmp_path: Path) -> None:
    value = {"size": {"height": 8, "width": 9}, "transformers_version": "5.0"}
    same = {"transformers_version": "5.1", "size": {"width": 9, "height": 8}}
    other = {"size": {"width": 9, "height": 9}}
    files = [tmp_path / f"{n}.json" for n in range(3)]
    files[0].write_text(json.dumps(value))
    files[1].write_text(json.dumps(same, indent=2).replace("\n", "\r\n"))
    files[2].write_text(json.dumps(other))
    assert digest(files[0]) == digest(files[1]) != digest(files[2])


def test_a_file_that_is_no_json_or_cannot_be_read_has_a_digest_all_the_same(tmp_path: Path) -> None:
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 200_000)
    assert len(digest(deep)) == 16
    assert digest(tmp_path / "absent") == "unreadable"


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, set()),
        ({"multimodal_config": object()}, {"preprocessor_config.json"}),
        ({"trust_remote_code": True}, {"modeling.py"}),
        ({"quantization": "ascend"}, {"quant_model_description.json"}),
    ],
)
def test_what_is_needed_depends_on_what_the_engine_does(
    tmp_path: Path, changes: dict[str, Any], needed: set[str]
) -> None:
    folder = write(
        tmp_path / "m", config__json="{}", preprocessor_config__json="{}", modeling__py="",
        quant_model_description__json="{}", tokenizer__json="{}", README__md="", onnx___a__json="",
    )  # fmt: skip
    files = Files.of(model_of(folder, **changes))
    assert files.needed().keys() == needed
    assert files.text().keys() == {"tokenizer.json"}


def test_a_model_of_the_hub_is_found_in_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    snapshot = cache / "models--org--tiny" / "snapshots" / ("a" * 40)
    write(snapshot, config__json="{}", tokenizer__json="{}")
    write(cache / "models--org--tiny" / "refs", main="a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert folder_of("org/tiny") == snapshot
    assert folder_of("org/other") is None
    assert folder_of("/no/such/place") is None


@pytest.mark.parametrize(
    "name", ["../secret.json", "/etc/passwd", "a/../../x", "a\0b", "", "a/b/c"]
)
def test_a_peer_asks_for_no_file_outside_of_the_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path, secret__json="{}", m___a___b___c="")
    assert Files(tmp_path / "m").digest(name) is None


# -- watching ------------------------------------------------------------------------------------


def test_what_is_read_while_a_model_is_built_is_known(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "m", config__json="{}", modules__json="[]", tokenizer__json="{}", other__txt="1",
        before__txt="", after__txt="",
    )  # fmt: skip
    (folder / "2_Dense").mkdir()
    weights = {"linear.weight": torch.ones(2, 2)}
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    save_file(weights, folder / "model.safetensors")
    elsewhere = write(tmp_path / "n", modules__json="[]")
    files = Files(folder)
    (folder / "before.txt").read_text()
    with files.watching():
        for name in ("config.json", "modules.json"):
            ast.literal_eval((folder / name).read_text())
        (elsewhere / "modules.json").read_bytes()
        reader = threading.Thread(target=(folder / "other.txt").read_text)
        reader.start()
        reader.join()
        load_file(folder / "2_Dense" / "model.safetensors")  # mapped: no event of Python's
        load_file(folder / "model.safetensors")
        files.built()
        (folder / "after.txt").read_text()
    assert files.read.keys() == {"modules.json", "other.txt", "2_Dense/model.safetensors"}
    assert files.needed() == files.read
    assert files.digest("modules.json") == files.read["modules.json"]


def test_paths_of_every_kind_are_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "m", a__json="{}", b__json="{}", c__json="{}", d__json="{}")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    files = Files(Path("link"))
    with files.watching():
        Path("link/a.json").read_text()
        os.close(os.open(b"link/b.json", os.O_RDONLY))
        with (tmp_path / "link" / "c.json").open():
            pass
        descriptor = os.open(folder / "d.json", os.O_RDONLY)
        with os.fdopen(descriptor):
            pass
    assert files.read.keys() == {"a.json", "b.json", "c.json", "d.json"}


def test_two_models_are_watched_at_once_and_nothing_stays_behind(tmp_path: Path) -> None:
    ordinary = torch.UntypedStorage.from_file
    one, two = (write(tmp_path / n, a__txt="", b__txt="") for n in "mn")
    first, second = Files(one), Files(two)
    with first.watching(), second.watching():
        (one / "a.txt").read_text()
        (two / "b.txt").read_text()
    assert [set(files.read) for files in (first, second)] == [{"a.txt"}, {"b.txt"}]
    assert torch.UntypedStorage.from_file == ordinary
    assert not WATCH._opened
    with first.watching():
        pass
    assert first.read == {}


def test_a_failure_in_building_ends_the_watch(tmp_path: Path) -> None:
    files = Files(write(tmp_path, a__txt=""))
    with pytest.raises(ZeroDivisionError), files.watching():
        raise ZeroDivisionError
    assert not WATCH._opened


def test_the_hook_that_stays_costs_next_to_nothing(tmp_path: Path) -> None:
    with Files(tmp_path).watching():
        pass
    started = time.perf_counter()
    for _ in range(100_000):
        WATCH._hook("open", ("somewhere", "r", 0))
    assert time.perf_counter() - started < 1.0  # 10 us a call would still be next to nothing
