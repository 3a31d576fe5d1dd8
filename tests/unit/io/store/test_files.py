"""Folders of safetensors files: what others wrote is read, what we write others read, faults say
what to do."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from netloader.errors import WeightsError
from netloader.fsm.manifest import Manifest, TensorSpec, segments_of
from netloader.io.failure import TransferError
from netloader.io.store.files import FileStore
from netloader.io.store.headers import DTYPES, name_of
from netloader.io.store.module import ModuleStore, manifest_of
from tests.unit.io.helpers import bytes_of, module_of, random
from tests.unit.io.store.copying import copied


def some() -> dict[str, Tensor]:
    """Tensors in an order that is not that of their names."""
    return {
        "b": random(3, 4, seed=1),
        "a": random(5, seed=2, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "scalar": random(seed=3, dtype=torch.int8),
    }


def blocks(store: Any) -> dict[str, bytes]:
    """The bytes of each tensor that a store serves."""
    names = [store.manifest.tensors[i].name for i in store.manifest.payload]
    (segment,) = segments_of(store.manifest, 1 << 30)
    return dict(zip(names, map(bytes, store.views(segment)), strict=True))


def whole(path: Path, header: object, data: bytes = b"") -> None:
    """Write a file by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


# -- reading -------------------------------------------------------------------------------------


def test_tensors_come_by_name_or_as_they_are_asked_for(tmp_path: Path) -> None:
    save_file(some(), tmp_path / "m.safetensors")

    def names(asked: Any) -> list[str]:
        return [spec.name for spec in FileStore.open(tmp_path, asked).manifest.tensors]

    assert names(None) == ["a", "b", "empty", "scalar"]
    assert names(some()) == names(iter(some())) == ["b", "a", "empty", "scalar"]
    assert names(["scalar", "b"]) == ["scalar", "b"]
    assert FileStore.open(str(tmp_path), some()).manifest == manifest_of([*some().items()])


def test_the_bytes_are_those_that_were_saved(tmp_path: Path) -> None:
    every = {name: random(3, 5, seed=i, dtype=d) for i, (name, d) in enumerate(DTYPES.items())}
    by_library = {n: t for n, t in every.items() if n != "F8_E8M0"}  # safetensors 0.8 has none
    save_file(by_library, tmp_path / "m.safetensors")

    wanted = {name: bytes_of(tensor) for name, tensor in by_library.items()}
    assert blocks(FileStore.open(tmp_path)) == wanted


def test_files_of_an_index_are_read_and_others_are_left_alone(tmp_path: Path) -> None:
    save_file({"a": random(2, seed=1)}, tmp_path / "one.safetensors")
    save_file({"b": random(3, seed=2)}, tmp_path / "two.safetensors")
    save_file({"b": random(4, seed=3)}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    assert blocks(FileStore.open(tmp_path)) == {
        "a": bytes_of(random(2, seed=1)),
        "b": bytes_of(random(3, seed=2)),
    }


def test_tied_tensors_are_served_as_a_manifest_has_them(tmp_path: Path) -> None:
    module = module_of(embed=random(4, 4), middle=random(3))
    module.register_parameter("head", module.get_parameter("embed"))
    manifest = ModuleStore.of(module).manifest
    save_file({"embed": random(4, 4), "middle": random(3)}, tmp_path / "m.safetensors")

    store = FileStore.open(tmp_path, manifest)
    assert store.manifest == manifest
    assert blocks(store) == blocks(ModuleStore.of(module))


def truncated(folder: Path) -> None:
    path = folder / "m.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def grown(folder: Path) -> None:
    path = folder / "m.safetensors"
    path.write_bytes(path.read_bytes() + b"x")


def entry(**fields: object) -> Callable[[Path], object]:
    """A file with one tensor of 8 bytes, described wrongly."""
    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

    def write(folder: Path) -> None:
        whole(folder / "m.safetensors", {"w": {**good, **fields}}, bytes(8))

    return write


def indexed(text: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(text)

    return write


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / "m.safetensors").unlink(), r"has no tensors in \*\.safetensors files"),
    (lambda f: (f / "m.safetensors").write_bytes(b""), r"m\.safetensors is empty; write or down"),
    (lambda f: (f / "m.safetensors").write_bytes(b"abc"), r"no safetensors file: of its 3 bytes"),
    (lambda f: whole(f / "m.safetensors", b"{nonsense"), "its header is no JSON .*again"),
    (lambda f: whole(f / "m.safetensors", b"\xff\xfe"), "its header is no JSON"),
    (lambda f: whole(f / "m.safetensors", [1]), "its header is no table of tensors"),
    (lambda f: (f / "m.safetensors").write_bytes(b"\xff" * 99), "of its 99 bytes, 18446744073"),
    (truncated, r"its tensors end at byte \d+, the file at \d+; write or download it again"),
    (grown, r"its tensors end at byte \d+, the file at \d+"),
    (entry(dtype="F6_E2M3"), "'w' is of the unknown dtype 'F6_E2M3'; netloader knows F64, F32"),
    (entry(dtype=7), "the entry of 'w' is malformed"),
    (entry(shape=[-2]), "the entry of 'w' is malformed"),
    (entry(shape=[3]), "'w' has 12 bytes and begins at 0, but its bytes are said to be 0 to 8"),
    (entry(data_offsets=[4, 12]), "'w' has 8 bytes and begins at 0, but .* 4 to 12"),
    (entry(data_offsets=[8, 0]), "'w' has 8 bytes and begins at 0, but .* 8 to 0"),
    (entry(shape=[0, 1 << 70], data_offsets=[0, 0]), "'w' has a shape that no tensor has"),
    (entry(shape=[0, 1 << 62, 1 << 62], data_offsets=[0, 0]), "'w' has a shape that|its tensors"),
    (entry(shape=[1 << 70], data_offsets=[0, 1 << 72]), "'w' has a shape that no tensor has"),
    (lambda f: whole(f / "m.safetensors", b"[" * 100_000), "its header is no JSON"),
    (entry(surprise=1), "the entry of 'w' is malformed"),
    (lambda f: save_file({"b": random(1)}, f / "n.safetensors"), "both have b; remove one"),
    (indexed('{"weight_map": {"b": "gone.safetensors"}}'), r"gone\.safetensors is missing, and mo"),
    (indexed('{"weight_map": {"c": "m.safetensors"}}'), "has no c, though the index names it"),
    (indexed("{"), "is no index of safetensors files; write or download it again"),
    (indexed('{"weight_map": [1]}'), "is no index of safetensors files"),
    (indexed('{"weight_map": {"b": 7}}'), "is no index of safetensors files"),
    (indexed("[]"), "is no index of safetensors files"),
]


@pytest.mark.parametrize(("damage", "words"), FAULTS)
def test_a_fault_names_the_file_and_what_to_do(
    tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    save_file(some(), tmp_path / "m.safetensors")
    damage(tmp_path)

    with pytest.raises(WeightsError, match=words) as caught:
        FileStore.open(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        (["a", "scaler"], WeightsError, "have no tensor scaler; did you mean scalar?"),
        (["qqqqqq"], WeightsError, "have no tensor qqqqqq; they have 4 others"),
        (["a", "a"], WeightsError, "tensors has a twice; leave one out"),
        ("a", TypeError, "tensors is of type str; give a list of names, or a Manifest"),
        (7, TypeError, "tensors is of type int; give a list of names, or a Manifest"),
        ([7], TypeError, r"tensors\[0\] is of type int; give a list of names"),
        (manifest_of([("a", random(7))]), WeightsError, "a has the dtype bfloat16 in the files"),
        (
            manifest_of([("b", random(4, 3))]),
            WeightsError,
            r"b has the shape \(3, 4\) in the files",
        ),
    ],
)
def test_what_the_files_do_not_have(
    tmp_path: Path, asked: Any, error: type[Exception], words: str
) -> None:
    save_file(some(), tmp_path / "m.safetensors")

    with pytest.raises(error, match=words):
        FileStore.open(tmp_path, asked)


def test_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere is no folder"):
        FileStore.open(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="folder is of type int; give the path of a folder"):
        FileStore.open(7)  # type: ignore[arg-type]


def test_reading_writes_nothing(tmp_path: Path) -> None:
    save_file(some(), tmp_path / "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()
    store = FileStore.open(tmp_path)

    with pytest.raises(WeightsError, match=r"only read; fill a new folder: FileStore\.create"):
        store.check_writable()
    with pytest.raises(TransferError, match="only read"):
        store.place(segments_of(store.manifest, 64)[0].extents[0])
    store.close()
    store.close()
    assert (tmp_path / "m.safetensors").read_bytes() == before


# -- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_bytes", [1, 60, 1 << 30])
def test_others_read_what_was_written(tmp_path: Path, file_bytes: int) -> None:
    source = ModuleStore(some().items())
    made = FileStore.create(tmp_path / "made", source.manifest, file_bytes)
    copied(source, made)

    files = sorted((tmp_path / "made").glob("*.safetensors"))
    found = {name: tensor for path in files for name, tensor in load_file(path).items()}
    assert {n: bytes_of(t) for n, t in found.items()} == {n: bytes_of(t) for n, t in some().items()}
    assert all(found[name].shape == tensor.shape for name, tensor in some().items())
    again = FileStore.open(tmp_path / "made", source.manifest)
    assert blocks(again) == blocks(made) == blocks(source)
    assert (tmp_path / "made" / "model.safetensors.index.json").exists() == (len(files) > 1)


def test_tied_tensors_are_written_once(tmp_path: Path) -> None:
    embed = random(4, 4)
    source = ModuleStore([("embed", embed), ("head", embed)])
    copied(source, FileStore.create(tmp_path / "made", source.manifest))

    assert [*load_file(tmp_path / "made" / "model.safetensors")] == ["embed"]
    assert FileStore.open(tmp_path / "made", source.manifest).manifest == source.manifest


def test_every_dtype_that_has_a_name_is_written(tmp_path: Path) -> None:
    every = [(name, random(3, 5, seed=i, dtype=d)) for i, (name, d) in enumerate(DTYPES.items())]
    source = ModuleStore(every)
    copied(source, FileStore.create(tmp_path / "made", source.manifest))

    assert blocks(FileStore.open(tmp_path / "made", source.manifest)) == blocks(source)
    assert name_of("complex128") is None


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (
            manifest_of([("w", random(3, 4).t())]),
            r"w has another memory order than files have; store it with contiguous\(\)",
        ),
        (
            manifest_of([("w", random(3, dtype=torch.complex128))]),
            "safetensors has no dtype complex128, which w has",
        ),
        (
            Manifest(
                tuple(
                    s._replace(format="FRACTAL_NZ") for s in manifest_of([("w", random(3))]).tensors
                )
            ),
            "w is stored as FRACTAL_NZ; cast it to ND",
        ),
        (manifest_of([("w", random(3))], (("x", "1"),)), "and x is none; fill a HostStore"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(tmp_path: Path, manifest: Manifest, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        FileStore.create(tmp_path / "made", manifest)
    assert [*tmp_path.iterdir()] == []


SPEC = TensorSpec("w", "float32", (2, 3), (3, 1), 24)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"nbytes": 1 << 40}, "no tensor of 1099511627776 bytes"),
        ({"nbytes": -24, "shape": (-2, 3)}, "no tensor of -24 bytes"),
        ({"shape": (1 << 40, 1 << 40)}, "no tensor of 24 bytes"),
        ({"shares": 1}, "damaged at 'w'"),
        ({"name": "__metadata__"}, "damaged at '__metadata__'"),
        ({"name": "v"}, "damaged at 'v'"),
        ({"dtype": "Tensor"}, "no dtype Tensor"),
        ({"stride": (1 << 70, 1)}, "no tensor of 24 bytes"),
        ({"stride": (-1, 1)}, "no tensor of 24 bytes"),
        ({"stride": (1,)}, "no tensor of 24 bytes"),
    ],
)
def test_what_no_model_has_is_refused(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    """A manifest may come from a server that makes one up."""
    manifest = Manifest((SPEC._replace(name="v"), SPEC._replace(**wrong)))
    with pytest.raises(WeightsError, match=words):
        FileStore.create(tmp_path / "out", manifest)
    assert [*tmp_path.iterdir()] == []


def test_a_folder_with_something_in_it_is_not_written_over(tmp_path: Path) -> None:
    manifest = manifest_of([*some().items()])
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="made exists and is not empty; choose another folder"):
        FileStore.create(tmp_path / "made", manifest)
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="file exists and is not empty"):
        FileStore.create(tmp_path / "file", manifest)

    (tmp_path / "made" / "config.json").unlink()
    copied(ModuleStore(some().items()), FileStore.create(tmp_path / "made", manifest))
    assert (tmp_path / "made" / "model.safetensors").exists()


def test_two_that_write_one_folder_do_not_mix(tmp_path: Path) -> None:
    source = ModuleStore(some().items())
    first, second = (FileStore.create(tmp_path / "made", source.manifest) for _ in range(2))
    copied(source, first)
    with pytest.raises(TransferError, match="made cannot be written: "):
        copied(source, second)
    second.close()

    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    assert blocks(FileStore.open(tmp_path / "made", source.manifest)) == blocks(source)


def test_a_disk_without_space_is_an_error_before_anything_is_received(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WeightsError, match=r"made cannot be written: .*No space left"):
        FileStore.create(tmp_path / "made", manifest_of([*some().items()]))
    assert [*tmp_path.iterdir()] == []


def test_a_forked_child_does_not_remove_what_its_parent_writes(tmp_path: Path) -> None:
    store = FileStore.create(tmp_path / "made", manifest_of([*some().items()]))
    child = os.fork()
    if not child:
        store.close()
        os._exit(0)
    os.waitpid(child, 0)

    copied(ModuleStore(some().items()), store)
    assert (tmp_path / "made" / "model.safetensors").exists()
