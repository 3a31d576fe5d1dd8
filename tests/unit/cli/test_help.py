"""What a new user reads, and what the docs promise of it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from netloader.cli.app import app
from netloader.cli.codes import MEANINGS, Code
from netloader.cli.main import main
from tests.unit.cli.helpers import ROOT, environment

PAGE = (ROOT / "docs" / "operate" / "command.md").read_text()


def named() -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    for command in app.registered_commands:
        yield (command.name or command.callback.__name__,) if command.callback else ()
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            yield str(group.name), str(command.name)


NAMES = [*named()]


@pytest.mark.parametrize("words", NAMES, ids=" ".join)
def test_every_command_teaches_by_example_has_json_and_is_in_the_docs(
    words: tuple[str, ...],
) -> None:
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "100"}).output
    assert f"netloader {' '.join(words)}" in shown.split("For example:")[1]
    assert "--json" in shown
    assert f"netloader {' '.join(words)}" in PAGE


def test_no_option_takes_a_token_itself() -> None:
    for words in NAMES:
        shown = CliRunner().invoke(app, [*words, "--help"]).output
        assert not re.search(r"--token\b(?!-file)", shown)


def test_every_exit_status_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Code)


@pytest.mark.parametrize(("config", "status"), [("{}", Code.OK), ("{", Code.NO)])
def test_the_entry_point_returns_the_status_of_the_command(
    monkeypatch: pytest.MonkeyPatch, config: str, status: Code
) -> None:
    monkeypatch.setattr(sys, "argv", ["netloader", "config", "check", config])
    assert main() == status


def test_without_typer_the_command_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['typer'] = None\n"
        "from netloader.cli.main import main\nsys.exit(main())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == Code.USAGE
    assert "pip install 'vllm-netloader[cli]'" in ran.stderr


def test_help_loads_no_torch() -> None:
    code = "import sys, netloader.cli.app; print(int('torch' in sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.strip() == "0"
