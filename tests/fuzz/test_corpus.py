"""Every input that was ever worth keeping, again: no fuzzer needed, and a second or two."""

from pathlib import Path
from typing import Final

import pytest

from tests.fuzz.second_opinion import KINDS
from tests.fuzz.shrink import outcome
from tests.fuzz.targets import TARGETS
from tests.support.histories import LIVES

CORPUS: Final = Path(__file__).parent / "corpus"
FILES: Final = sorted(file for file in CORPUS.rglob("*") if file.is_file())
MOST_FILES: Final = 320
MOST_BYTES: Final = 500 * 1024


def names(target: str) -> list[str]:
    return [file.name for file in FILES if file.parent.name == target]


def by_name(file: Path) -> str:
    return f"{file.parent.name}-{file.name}"


@pytest.mark.parametrize("file", FILES, ids=by_name)
def test_no_target_finds_a_promise_broken(file: Path) -> None:
    data = file.read_bytes()
    for target in TARGETS.values():
        target(data)


@pytest.mark.parametrize("file", FILES, ids=by_name)
def test_it_ends_as_its_name_says(file: Path) -> None:
    how = outcome(file.parent.name, file.read_bytes())

    assert file.name.startswith(f"{how}-")


def test_every_kind_of_message_has_a_valid_example() -> None:
    assert {f"heard-{kind}" for kind in KINDS} <= set(names("documents"))


def test_a_conversation_starts_in_a_life_that_there_is() -> None:
    starts = {file.name: file.read_text().split("\n")[0] for file in CORPUS.glob("sessions/*")}

    assert {name: life for name, life in starts.items() if life not in LIVES} == {}


def test_what_is_kept_stays_small_and_belongs_to_a_target() -> None:
    assert {file.parent.name for file in FILES} == set(TARGETS)
    assert len(FILES) <= MOST_FILES
    assert sum(file.stat().st_size for file in FILES) <= MOST_BYTES
