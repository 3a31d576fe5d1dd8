"""The package as a whole: what an import brings along, what is public, which way imports point."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import netloader

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "netloader"
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def module_of(path: Path) -> str:
    """netloader/fsm/__init__.py -> netloader.fsm"""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def public_names(path: Path) -> list[str] | None:
    """The `__all__` of a file, or None when it has none."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def listed(path: Path) -> set[str]:
    """The public names that a file brings in, when bringing in names is all it does."""
    body = ast.parse(path.read_text()).body
    imports = [node for node in body if isinstance(node, ast.ImportFrom)]
    if not all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in body):
        return set()
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    return {name for name in names if not name.startswith("_")}


FILES = {module_of(path): path for path in PACKAGE.rglob("*.py")}
WITH_ALL = {name: path for name, path in FILES.items() if public_names(path) is not None}


def in_order(name: str) -> tuple[int, str]:
    """ruff's order (RUF022): CONSTANTS, then Classes, then functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def fresh(code: str) -> list[str]:
    """What a fresh interpreter prints, in lines."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()


def test_the_protocol_loads_nothing_heavy_and_nothing_that_performs() -> None:
    loaded = fresh("import sys, netloader.fsm; print('\\n'.join(sys.modules))")

    assert "netloader.fsm.client" in loaded
    unwanted = {"torch", "torch_npu", "vllm", "structlog", "msgspec", "blake3", "netloader.log"}
    assert not unwanted & set(loaded)
    assert not [name for name in loaded if name.startswith(("netloader.io", "netloader.vllm"))]


def test_bytes_are_read_and_written_without_torch_a_socket_or_a_log() -> None:
    loaded = fresh("import sys, netloader.wire; print('\\n'.join(sys.modules))")

    assert "netloader.wire.frames" in loaded
    assert not {"torch", "torch_npu", "vllm", "structlog", "netloader.log"} & set(loaded)
    assert not [name for name in loaded if name.startswith(("netloader.io", "netloader.vllm"))]


def test_the_simulated_world_loads_no_torch() -> None:
    loaded = fresh("import sys, netloader.testing; print('\\n'.join(sys.modules))")

    assert "netloader.testing.world" in loaded
    assert "torch" not in loaded
    assert not [name for name in loaded if name.startswith(("netloader.io", "netloader.vllm"))]


def test_the_driver_loads_no_vllm() -> None:
    assert "vllm" not in fresh("import sys, netloader.io; print('\\n'.join(sys.modules))")


def test_the_package_itself_loads_nothing() -> None:
    loaded = fresh("import sys, netloader; print('\\n'.join(sys.modules))")

    assert [name for name in loaded if name.startswith("netloader")] == ["netloader"]


def test_the_rooms_say_what_is_public() -> None:
    assert {"netloader.fsm", "netloader.io", "netloader.wire", "netloader.aio"} <= set(WITH_ALL)
    assert "Verdict" in listed(WITH_ALL["netloader.fsm"])
    assert "Outcome" in listed(WITH_ALL["netloader.io"])


@pytest.mark.parametrize("name", sorted(WITH_ALL))
def test_what_is_called_public_exists_and_is_in_order(name: str) -> None:
    module = importlib.import_module(name)
    names = public_names(WITH_ALL[name]) or []

    assert names == module.__all__
    assert names == sorted(set(names), key=in_order)
    assert [missing for missing in names if not hasattr(module, missing)] == []
    assert listed(WITH_ALL[name]) - {*names} == set(), "imported here, but not called public"


def test_imports_point_one_way() -> None:
    done = subprocess.run(
        [LINT_IMPORTS, "--no-cache", "--no-logo"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: \d+ kept, 0 broken\.", done.stdout)


def test_the_version_is_the_one_that_is_released() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]

    assert netloader.__version__ == project["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", netloader.__version__)


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
