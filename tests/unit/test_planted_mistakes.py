"""The safety net is itself tested: a mistake of each kind, planted in a copy, is caught.

Each tool is really run, with the project's own settings, on a copy of the package: first as it is,
which must be clean, then with one mistake, which must be the one thing that is reported.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.planting import copied, planted

LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")

CLIENT = "netloader/fsm/client.py"
SERVER = "netloader/fsm/server.py"
SESSION = "netloader/fsm/session.py"
TASKS = "netloader/wire/tasks.py"

# Reading torch takes mypy half a minute and has no say in what is planted here.
WITHOUT_TORCH = """
[[tool.mypy.overrides]]
module = ["torch.*"]
follow_imports = "skip"
"""
PURE = "fsm is pure: no clock, socket, thread, chance, log line, tensor"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and its settings, free to be spoilt; mypy's cache in it serves all tests."""
    folder = copied(tmp_path_factory.mktemp("copy"), "netloader")
    with (folder / "pyproject.toml").open("a") as settings:
        settings.write(WITHOUT_TORCH)
    return folder


def run(copy: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a tool on the copy, and on nothing else."""
    return subprocess.run(
        command,
        cwd=copy,
        env={"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def mypy(copy: Path) -> list[str]:
    """What mypy reports about the protocol and its tasks, one line each, without the summary."""
    files = ("netloader/fsm", TASKS)
    done = run(copy, sys.executable, "-m", "mypy", "--follow-imports=silent", *files)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    *reported, summary = done.stdout.splitlines()
    assert ("no issues found" in summary) == (done.returncode == 0)
    return reported


def imports(copy: Path) -> str:
    """What lint-imports says about the contract that keeps the protocol pure."""
    return run(copy, LINT_IMPORTS, "--no-cache", "--no-logo").stdout


# -- mypy ----------------------------------------------------------------------------------------


def test_mypy_has_nothing_to_say_about_the_copy_as_it_is(copy: Path) -> None:
    assert mypy(copy) == []


def test_an_effect_forgotten_in_the_driver_is_caught(copy: Path) -> None:
    with planted(copy, TASKS, r" +case AbortTransfer\(\):\n.*\n", ""):
        (reported,) = mypy(copy)

    assert reported.startswith(f"{TASKS}:")
    assert 'Argument 1 to "assert_never" has incompatible type "AbortTransfer"' in reported


@pytest.mark.parametrize(
    ("pattern", "mistake", "told"),
    [
        pytest.param(
            r"row\(V, Ask, +V, _ask\)",
            "row(V, Ask, V, _greet)",
            r'Argument 4 to "row".*\[ClientSession, Connected\].*expected.*Ask\]',
            id="an action for another event",
        ),
        pytest.param(
            r"row\(V, Begin, +T, _start, +when=_awaited\)",
            "row(V, Begin, T, _start, when=_wrong_proof)",
            r'Argument "when" to "row".*\[ClientSession, Challenge\].*expected.*Begin\]',
            id="a guard of another event",
        ),
        pytest.param(
            r"row\(V, Begin, +T, _start, +when=_awaited\)",
            "row(V, Begin, T, _start, when=_start)",
            r'Argument "when" to "row".*Iterable.*expected.*bool',
            id="an action where a guard belongs",
        ),
        pytest.param(
            r"row\(L, ConnectFailed, +F, _give_up\)",
            'row(L, ConnectFailed, "FALLBACK", _give_up)',
            r'Argument 3 to "row" has incompatible type "str"; expected "Enum"',
            id="a string where a state belongs",
        ),
        pytest.param(
            r"row\(L, ConnectFailed, +F, _give_up\)",
            'row(L, "ConnectFailed", F, _give_up)',
            r'Argument 2 to "row" has incompatible type "str"; expected',
            id="a string where an event belongs",
        ),
    ],
)
def test_a_wrong_row_is_caught(copy: Path, pattern: str, mistake: str, told: str) -> None:
    with planted(copy, CLIENT, pattern, mistake) as line:
        (reported,) = mypy(copy)

    assert reported.startswith(f"{CLIENT}:{line}: error: ")
    assert re.search(told, reported)


# -- import-linter -------------------------------------------------------------------------------


def test_the_copy_as_it_is_keeps_the_protocol_pure(copy: Path) -> None:
    assert f"{PURE} KEPT" in imports(copy)


@pytest.mark.parametrize("module", ["time", "socket", "torch", "random", "logging"])
def test_an_impure_import_in_the_protocol_is_caught(copy: Path, module: str) -> None:
    top = r"(?=from collections\.abc import )"

    with planted(copy, SESSION, top, f"import {module}\n") as line:
        said = imports(copy)

    assert f"{PURE} BROKEN" in said
    assert f"netloader.fsm.session -> {module} (l.{line})" in said


# -- the table's own check, at import ------------------------------------------------------------


def imported(copy: Path) -> str:
    """The last line that importing the protocol prints; nothing when all is well."""
    said = run(copy, sys.executable, "-c", "import netloader.fsm").stderr.splitlines()
    return said[-1] if said else ""


def test_the_copy_as_it_is_can_be_imported(copy: Path) -> None:
    assert imported(copy) == ""


@pytest.mark.parametrize("file", [CLIENT, SERVER])
@pytest.mark.parametrize("state", ["LISTEN", "HANDSHAKE", "VALIDATE", "TRANSFER"])
def test_a_state_without_a_deadline_cannot_be_imported(copy: Path, file: str, state: str) -> None:
    with planted(copy, file, rf" +State\.{state}: lambda .*\n", ""):
        assert imported(copy) == f"netloader.errors.TableError: {state} has no deadline"


@pytest.mark.parametrize(
    ("pattern", "mistake", "told"),
    [
        pytest.param(
            r" +row\(V, Begin, .*\n", "", "TRANSFER cannot be reached", id="unreachable state"
        ),
        pytest.param(
            r" +row\(T, Transferred, +T, _hold\),\n",
            "",
            "TRANSFER has no last word on Transferred",
            id="guard without last word",
        ),
        pytest.param(
            r",\s+when=_wrong_proof",
            "",
            "HANDSHAKE answers Challenge twice the same way",
            id="forgotten guard",
        ),
        pytest.param(
            r"(?m)^(?= +row\(V, Begin,)",
            "        row(D, Begin, T, _start),\n",
            "DONE must absorb Begin; DONE answers Begin twice the same way",
            id="terminal state that goes on",
        ),
    ],
)
def test_a_wrong_table_cannot_be_imported(
    copy: Path, pattern: str, mistake: str, told: str
) -> None:
    with planted(copy, CLIENT, pattern, mistake):
        assert imported(copy) == f"netloader.errors.TableError: {told}"
