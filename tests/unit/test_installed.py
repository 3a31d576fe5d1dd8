"""Another project has our import name; both in one environment are one broken folder."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from netloader.installed import OURS, mixed

ROOT = Path(__file__).parents[2]
PLUGIN = "[vllm.general_plugins]\nnetloader = netloader.vllm_plugin:register\n"


def installed(folder: Path, name: str, version: str, entry_points: str = "") -> None:
    """What pip notes about a distribution."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds all that is installed."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    installed(tmp_path, OURS, "0.1.0", PLUGIN)
    return tmp_path


def test_the_distribution_has_a_name_of_its_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == OURS != "netloader"


def test_alone_nothing_is_wrong(environment: Path) -> None:
    assert mixed() == ""


def test_the_other_project_is_named_with_what_to_do(environment: Path) -> None:
    installed(environment, "netloader", "3.12.1")
    problem = mixed()
    assert "another project, netloader 3.12.1, has the same import name" in problem
    assert f"pip uninstall --yes netloader {OURS}" in problem


def test_this_project_under_its_old_name_is_told_from_the_other(environment: Path) -> None:
    installed(environment, "netloader", "0.1.0", PLUGIN)
    assert "this project is installed under its old name, netloader 0.1.0" in mixed()


def test_the_module_says_so_when_it_is_run(tmp_path: Path) -> None:
    installed(tmp_path, "netloader", "3.12.1")
    ran = subprocess.run(
        [sys.executable, "-m", "netloader", "--version"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("another project, netloader 3.12.1")
