"""Which files travel: by names and sizes, on both sides."""

from pathlib import PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netloader.files.rules import DATA, MIB, WITH_CODE, FilesError, Rules, clash_in, spec_of
from netloader.fsm.manifest import Manifest, TensorSpec

TAKEN = (
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "qwen.tiktoken",
    "merges.txt",
    "chat_template.jinja",
    "1_Pooling/config.json",
    "hf_quant_config.json",
    "additional_chat_templates/tool_use.jinja",
)
CLIMBING = (
    "../config.json",
    "a/../../config.json",
    "/etc/passwd.txt",
    "..",
    "",
    "a//b.json",
    "a/./b.json",
    "C:\\config.json",
    "C:config.json",
    "a\\..\\b.json",
    "config.json\x00.txt",
    "config\n.json",
    "\x1b[2Jconfig.json",
    "config.json/",
    ".config.json",
    ".git/config.json",
    "conf\u0131g.json",
    "\uff23onfig.json",
    "a/b/c/d/e.json",
    "x" * 129 + ".json",
)
OTHER = ("model.safetensors.index.json", "sub/adapter_config.json", "netloader.json")
RUN = ("modeling.so", "weights.pkl", "model.bin", "model.pt", "run.sh", "x.model.v3.so", "setup.PY")


def manifest(*specs: TensorSpec, values: tuple[tuple[str, str], ...] = ()) -> Manifest:
    return Manifest(specs, values)


def of(*names: str, nbytes: int = 3) -> Manifest:
    return manifest(*(spec_of(name, nbytes) for name in names))


def refusal(offered: Manifest, rules: Rules = DATA) -> str:
    with pytest.raises(FilesError) as caught:
        rules.check(offered)
    return str(caught.value)


def test_what_an_instance_needs_to_start_is_taken() -> None:
    DATA.check(of(*TAKEN))


@pytest.mark.parametrize("name", CLIMBING)
def test_a_name_that_is_no_plain_path_inside_the_folder_is_refused(name: str) -> None:
    said = refusal(of("config.json", name))
    assert "has no path that is taken" in said
    assert "parts of letters, digits" in said
    assert said.isprintable()


@pytest.mark.parametrize("name", [*RUN, *OTHER])
def test_what_may_be_run_or_names_other_files_is_refused_by_name_also_with_trust(name: str) -> None:
    for rules in (DATA, WITH_CODE):
        assert f"'{name}' of the source is of no kind" in refusal(of("config.json", name), rules)


def test_code_is_taken_with_trust_alone() -> None:
    assert "'modeling.py' of the source is code; give --trust" in refusal(of("modeling.py"))
    WITH_CODE.check(of("modeling.py"))


def test_sizes_are_bounded_before_anything_is_received() -> None:
    huge = refusal(of("config.json", nbytes=10 << 30))
    assert "'config.json' of the source has 10737418240 bytes; at most 134217728" in huge
    many = refusal(of(*(f"{n}.json" for n in range(513))))
    assert "513 files; at most 512" in many
    whole = of(*(f"{n}.json" for n in range(5)), nbytes=128 * MIB)
    assert "671088640 bytes of files; at most" in refusal(whole)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("config.json", "config.json"), "one file on some file systems"),
        (("Config.json", "config.json"), "one file on some file systems"),
        (("a.json", "a.json/b.json"), "cannot be a file and a folder"),
        (("A.json/b.json", "a.json"), "cannot be a file and a folder"),
    ],
)
def test_two_names_for_one_place_are_refused(names: tuple[str, ...], words: str) -> None:
    assert words in refusal(of(*names))


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("a.json", "float32", (2,), (1,), 8),
        TensorSpec("a.json", "uint8", (2, 4), (4, 1), 8),
        TensorSpec("a.json", "uint8", (9,), (1,), 8),
        TensorSpec("a.json", "uint8", (8,), (1,), 8, 0),
        TensorSpec("a.json", "uint8", (8,), (1,), 8, -1, 4),
        TensorSpec("a.json", "uint8", (8,), (1,), 8, format="NZ"),
    ],
)
def test_what_is_not_described_as_bytes_is_no_file(spec: TensorSpec) -> None:
    assert "not described as plain bytes" in refusal(manifest(spec_of("b.json", 8), spec))


def test_a_negative_size_values_and_no_files_are_refused() -> None:
    assert "has -1 bytes" in refusal(manifest(spec_of("a.json", -1), spec_of("b.json", 9)))
    assert "no files" in refusal(manifest())
    assert "no files" in refusal(of("config.json", nbytes=0))
    assert "more than files" in refusal(manifest(spec_of("a.json", 1), values=(("x", "1"),)))


@given(
    name=st.text(
        alphabet=st.sampled_from("aA0._-/\\:\x00\n ~\uff21") | st.characters(), max_size=40
    )
)
@example(name="a/../../b.json")
def test_every_name_that_is_taken_stays_in_its_folder_on_every_system(name: str) -> None:
    names = (name, f"{name}.json", f"sub/{name}.json", f"{name}/x.json")
    for each in names:
        if DATA.flaw(each, 1):
            continue
        folder = PurePosixPath("/somewhere/cache")
        place = folder / each
        assert place.is_relative_to(folder)
        assert place != folder
        assert ".." not in place.parts
        assert each == place.relative_to(folder).as_posix(), "the name is written in one way only"
        assert each.isascii()
        assert each.isprintable()
        assert not {*each} & {*'\\:*?"<>| '}
        assert not any(part.startswith((".", "-")) for part in each.split("/"))


@given(names=st.lists(st.sampled_from(["a.json", "A.json", "a.json/b.txt", "b/c.txt", "B/C.txt"])))
def test_no_clash_means_as_many_files_as_names_on_any_file_system(names: list[str]) -> None:
    if not clash_in(names):
        folded = {name.lower() for name in names}
        assert len(folded) == len(names)
        assert not any(a != b and b.startswith(f"{a}/") for a in folded for b in folded)
