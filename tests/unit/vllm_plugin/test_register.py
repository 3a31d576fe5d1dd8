"""Whose loader vLLM takes for `netloader` when vllm-ascend is installed as well.

With vLLM's own plugin loading, in processes of its own: plugins are loaded once in a process. One
process imports vLLM, which takes seconds, and forks for each case.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from netloader.log import FIELDS, TEXT_FORM

STUBS = Path(__file__).parents[2] / "stubs"
OURS, THEIRS = "netloader", "vllm_ascend"
THEIR_PLUGIN = "ascend_model_loader"

LAUNCHER = """
import json, logging, os, sys
logging.basicConfig(level=logging.DEBUG, format="%(message)s")
import vllm.plugins
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader

def run(case):
    sys.path[:] = case["before"] + sys.path + case["after"]
    if case["plugins"] is not None:
        os.environ["VLLM_PLUGINS"] = case["plugins"]
    vllm.plugins.load_general_plugins()
    loader = get_model_loader(LoadConfig(load_format="netloader"))
    rival = sys.modules.get("vllm_ascend")
    return {
        "winner": type(loader).__module__.partition(".")[0],
        "modules": sorted(sys.modules),
        "done": getattr(rival, "DONE", []),
    }

for case in json.load(sys.stdin):
    if os.fork() == 0:
        log = os.open(case["result"] + ".log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        with open(case["result"], "w") as result:
            json.dump(run(case), result)
        os._exit(0)
    os.wait()
"""


@dataclass(frozen=True)
class Case:
    """What is on the path before and after everything else, and which plugins vLLM may load."""

    result: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    plugins: str | None = None


@dataclass(frozen=True)
class Result:
    winner: str
    modules: frozenset[str]
    done: list[str]
    """What vllm-ascend did, in order."""
    log: str


def other_netloader(folder: Path) -> str:
    """A folder with what pip notes about this project and about the other of our import name."""
    for name, version in (("netloader", "3.12.1"), ("vllm_netloader", "0.1.0")):
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata)
    (info / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\n{OURS} = netloader.vllm_plugin:register\n"
    )
    return str(folder)


def distribution(folder: Path) -> str:
    """A folder that holds what pip would note about an installed vllm-ascend."""
    info = folder / "vllm_ascend-0.0.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-ascend\nVersion: 0.0.0\n")
    (info / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\n{THEIR_PLUGIN} = vllm_ascend:register_model_loader\n"
    )
    return str(folder)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """The result of every case, by its name."""
    folder = tmp_path_factory.mktemp("register")
    stub = (distribution(folder / "metadata"), str(STUBS))
    (folder / "broken" / "vllm_ascend").mkdir(parents=True)
    (folder / "broken" / "vllm_ascend" / "__init__.py").write_text("raise OSError('no NPU here')")
    broken = (distribution(folder / "broken"),)
    cases = {
        "alone": Case("alone"),
        "theirs first": Case("first", before=stub),
        "theirs last": Case("last", after=stub),
        "both named": Case("both", after=stub, plugins=f"{OURS},{THEIR_PLUGIN}"),
        "ours named": Case("ours", before=stub, plugins=OURS),
        "theirs named": Case("theirs", after=stub, plugins=THEIR_PLUGIN),
        "broken first": Case("broken-first", before=broken),
        "broken last": Case("broken-last", after=broken),
        "mixed": Case("mixed", before=(other_netloader(folder / "other"),)),
    }
    told = [{**asdict(case), "result": str(folder / case.result)} for case in cases.values()]
    subprocess.run(
        [sys.executable, "-c", LAUNCHER],
        input=json.dumps(told),
        text=True,
        env={**os.environ, "VLLM_CONFIGURE_LOGGING": "0", TEXT_FORM: FIELDS},
        timeout=240,
        check=True,
    )
    return {name: _read(folder / case.result) for name, case in cases.items()}


def _read(path: Path) -> Result:
    log = path.with_name(f"{path.name}.log").read_text()
    assert path.stat().st_size, log
    answer = json.loads(path.read_text())
    return Result(answer["winner"], frozenset(answer["modules"]), answer["done"], log)


def registered(result: Result) -> list[str]:
    """The fields of our line, of each time it was logged."""
    _, *lines = result.log.split("netloader.plugin.registered")
    return [line.partition("\n")[0].strip() for line in lines]


BESIDE = pytest.mark.parametrize("name", ["theirs first", "theirs last", "both named"])


@BESIDE
def test_ours_wins_whichever_plugin_comes_first_and_says_whom_it_replaces(
    results: dict[str, Result], name: str
) -> None:
    assert results[name].winner == OURS
    assert registered(results[name]) == ["netloader.replaces=vllm_ascend"]


@BESIDE
def test_theirs_patches_vllm_before_its_loader_is_imported(
    results: dict[str, Result], name: str
) -> None:
    assert results[name].done == ["patched", "registered"]


def test_an_operator_who_names_only_ours_gets_nothing_of_theirs(
    results: dict[str, Result],
) -> None:
    result = results["ours named"]

    assert result.winner == OURS
    assert not any(module.partition(".")[0] == THEIRS for module in result.modules)
    assert registered(result) == [""]


def test_without_another_plugin_nothing_is_replaced(results: dict[str, Result]) -> None:
    assert results["alone"].winner == OURS
    assert registered(results["alone"]) == [""]


def test_the_log_says_when_another_project_lies_among_our_files(
    results: dict[str, Result],
) -> None:
    assert results["mixed"].winner == OURS
    assert "netloader.plugin.mixed" in results["mixed"].log
    assert "another project, netloader 3.12.1" in results["mixed"].log


@pytest.mark.parametrize("name", ["broken first", "broken last"])
def test_a_plugin_that_cannot_be_imported_does_not_take_ours_along(
    results: dict[str, Result], name: str
) -> None:
    (fields,) = registered(results[name])

    assert results[name].winner == OURS
    assert "the loader of vllm_ascend cannot be registered: no NPU here" in fields
    assert "netloader.replaces" not in fields


def test_an_operator_who_names_only_theirs_gets_theirs_and_nothing_of_ours(
    results: dict[str, Result],
) -> None:
    result = results["theirs named"]

    assert result.winner == THEIRS
    assert not any(module.partition(".")[0] == OURS for module in result.modules)
    assert registered(result) == []
