"""A source and this side: what is refused, what is only said, and what to do about it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from netloader.fsm.identity import Identity
from netloader.vllm_plugin.identity import compare
from netloader.vllm_plugin.identity.compare import Answers
from netloader.vllm_plugin.identity.files import Files, Kind, digest
from netloader.vllm_plugin.identity.identity import DRAFT, TARGET
from netloader.vllm_plugin.identity.local_model import Checkpoint, LocalModel

NOTHING = Answers({}, None, ())


def files_of(folder: Path, *kinds: Kind, **texts: str) -> Files:
    for name, text in texts.items():
        file = folder / name.replace("___", "/").replace("__", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Files(folder, frozenset(kinds))


def found(
    mine: dict[str, str], theirs: dict[str, str], overridden: Any = (), told: Any = None
) -> list[tuple[str, str, str, str]]:
    differences = compare.differences(Identity(mine), Identity(theirs), overridden, told)
    return [(d.field, d.mine, d.theirs, d.remedy) for d in differences]


@pytest.mark.parametrize(
    ("mine", "theirs", "remedy"),
    [
        ((), (), "the two config.json differ: use the same file on both sides"),
        (("text",), (), "set by --hf-overrides of this side: give both sides the same"),
        ((), ("text",), "set by --hf-overrides of the source: give both sides the same"),
        (
            ("text", "other"),
            ("*",),
            "set by --hf-overrides of this side and the source: give both sides the same",
        ),
        (("other",), ("another",), "the two config.json differ: use the same file on both sides"),
    ],
)
def test_a_key_of_the_config_is_named_with_the_option_that_made_it(
    mine: tuple[str, ...], theirs: tuple[str, ...], remedy: str
) -> None:
    told = Answers({}, None, theirs)
    one = {"model": "a", "config.text.rope": "1"}
    two = {"model": "a", "config.text.rope": "2"}
    assert found(one, two, mine, told) == [("config.text.rope", "1", "2", remedy)]


def test_what_only_one_side_has_counts_where_the_other_would_have_it_too() -> None:
    mine = {"config.a": "1", "tensor_parallel": "0 of 1", "layout": "raw"}
    theirs = {"file.x.py": "ab", "kernel_state": "cd", "layout": "processed"}
    assert [row[:3] for row in found(mine, theirs)] == [
        ("config.a", "1", "(absent)"),
        ("file.x.py", "(absent)", "ab"),
    ]


@pytest.mark.parametrize(
    ("mine", "theirs", "remedy"),
    [
        ({}, {"file.x.py": "1"}, "copy x.py from the source's model folder into this one"),
        ({"file.x.py": "1"}, {}, "the source's model folder has no x.py"),
        ({"file.x.py": "1"}, {"file.x.py": "2"}, "the two x.py differ"),
    ],
)
def test_a_file_is_named_with_what_to_do(
    mine: dict[str, str], theirs: dict[str, str], remedy: str
) -> None:
    (row,) = found(mine, theirs)
    assert row[3].startswith(remedy)


def test_a_checkpoint_of_another_revision_is_a_difference_where_both_have_it() -> None:
    mine = Identity({}, {"checkpoint": "1", "checkpoint.2_Dense": "2"})
    theirs = Identity({}, {"checkpoint.2_Dense": "3", "checkpoint_bin": "4"})
    (difference,) = compare.differences(mine, theirs, (), None)
    assert difference.field == "checkpoint.2_Dense"


# -- files ---------------------------------------------------------------------------------------


def test_a_source_names_the_files_that_its_model_was_built_of(tmp_path: Path) -> None:
    mine = files_of(tmp_path, modules__json="[]", d___model__json="1", tokenizer__json="{}")
    theirs = Identity({"file.modules.json": "x", "file.d/model.json": "y", "file.gone": "z"})
    counted = compare.files_for(mine, theirs, None)
    assert counted == {n: digest(tmp_path / n) for n in ("modules.json", "d/model.json")}


def test_a_file_that_only_this_process_read_counts_unless_the_source_has_the_same(
    tmp_path: Path,
) -> None:
    mine = files_of(tmp_path, tokenizer__json="{}")
    with mine.watching():
        (tmp_path / "tokenizer.json").read_text()
    text = mine.digest("tokenizer.json")
    assert text is not None
    nothing = Identity({})
    assert compare.files_for(mine, nothing, None) == {"tokenizer.json": text}
    assert compare.files_for(mine, nothing, Answers({}, {"tokenizer.json": "0"}, ())) == {
        "tokenizer.json": text
    }
    assert compare.files_for(mine, nothing, Answers({}, {"tokenizer.json": text}, ())) == {}


def test_what_a_peer_names_by_the_thousand_is_cut(tmp_path: Path) -> None:
    for n in range(300):
        (tmp_path / f"{n:04}").touch()
    theirs = Identity({f"file.{n:04}": "x" for n in range(300)})
    assert len(compare.files_for(Files(tmp_path), theirs, None)) == 256


# -- warnings ------------------------------------------------------------------------------------


def test_defaults_and_text_are_a_warning_with_the_file_that_helps() -> None:
    mine = Answers({"eos_token_id": "[2]", "top_k": "5"}, {"tokenizer.json": "1"}, ())
    theirs = Answers(
        {"eos_token_id": "[2, 7]"}, {"tokenizer.json": "2", "chat_template.jinja": "3"}, ()
    )
    rows = [(w.field, w.mine, w.theirs) for w in compare.warnings(mine, theirs)]
    assert rows == [
        ("default.eos_token_id", "[2]", "[2, 7]"),
        ("default.top_k", "5", "(absent)"),
        ("file.tokenizer.json", "1", "2"),
        ("file.chat_template.jinja", "(absent)", "3"),
    ]
    remedies = [w.remedy for w in compare.warnings(mine, theirs)]
    assert "generation_config.json" in remedies[0]
    assert "--override-generation-config" in remedies[1]
    assert remedies[3] == "copy chat_template.jinja from the source's model folder into this one"


def local(config: Any, files: Files, role: str = TARGET) -> LocalModel:
    """A model with these files, of which vLLM says this."""
    return LocalModel(
        role=role, rank=0, path="", device_type="cpu", early=Identity({}), kv_role="None",
        overridden=(), unsteady=("", ""), worker_classes=(), files=files,
        checkpoint=Checkpoint(config),
    )  # fmt: skip


def test_an_engine_without_a_tokenizer_is_not_told_about_text(tmp_path: Path) -> None:
    there = files_of(tmp_path, tokenizer__json="{}")
    config = SimpleNamespace(
        generation_config="auto", tokenizer=str(tmp_path), override_generation_config={},
        try_get_generation_config=dict, logits_processors=None, skip_tokenizer_init=False,
    )  # fmt: skip
    full = compare.answers_of(local(config, there))
    assert full.text is not None
    assert full.text.keys() == {"tokenizer.json"}
    config.skip_tokenizer_init = True
    bare = compare.answers_of(local(config, there))
    assert bare.text is None
    assert compare.warnings(full, bare) == compare.warnings(bare, full) == ()


def test_a_tokenizer_elsewhere_is_the_one_that_counts(tmp_path: Path) -> None:
    there = files_of(tmp_path / "model", tokenizer__json="{}")
    other = files_of(tmp_path / "other", tokenizer__json='{"a": 1}')
    config = SimpleNamespace(
        generation_config="auto", tokenizer=str(tmp_path / "other"), override_generation_config={},
        try_get_generation_config=dict, logits_processors=None, skip_tokenizer_init=False,
    )  # fmt: skip
    assert compare.answers_of(local(config, there)).text == other.text() != there.text()
    assert compare.answers_of(local(config, there, DRAFT)) == NOTHING


def test_what_is_told_is_read_back() -> None:
    for answers in (NOTHING, Answers({"a": "1"}, {"b": "2"}, ("c",)), Answers({}, {}, ())):
        assert compare.parse(answers.render()) == answers


@pytest.mark.parametrize(
    "text", ["", "{", "5", "[]", "[1, 2, 3]", '[{}, {"a": 1}, []]', "[{}, null, 5]", "[" * 100_000]
)
def test_what_cannot_be_read_is_nothing(text: str) -> None:
    assert compare.parse(text) is None
