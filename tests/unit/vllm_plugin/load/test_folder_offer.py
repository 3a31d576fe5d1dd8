"""A rank offers the files of its model's folder beside its weights."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from netloader.files.fetching import fetch
from netloader.files.rules import DATA, WITH_CODE, FilesError, Rules
from netloader.fsm.manifest import Progress
from netloader.log import capture
from netloader.vllm_plugin.identity.files import Files, Kind
from netloader.vllm_plugin.identity.identity import DRAFT, TARGET
from netloader.vllm_plugin.load.loaded import taken
from netloader.vllm_plugin.load.offer import offer
from tests.unit.io.helpers import asking
from tests.unit.vllm_plugin.helpers import (
    events,
    line_of,
    plan,
    post_process,
    receive,
    settings,
    where,
)

pytestmark = pytest.mark.usefixtures("worker_process")


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "modeling.py").write_text("pass")
    (path / "model.safetensors").write_text("w")
    return path


def offered(files: Files, role: str = TARGET, **changes: Any) -> nn.Module:
    """Serve a tiny model; what keeps it alive."""
    module, options = nn.Linear(4, 4), settings()
    chosen = plan(role, files=files, names=("inner", "public"), **changes)
    loaded = taken(chosen, module, options.keeping_at_load, Progress())
    post_process(module)
    assert offer(module, chosen, loaded, options)
    return module


def names(cache: Path, rules: Rules = DATA) -> tuple[str, ...]:
    fetched = fetch([where()], asking(), rules, cache)
    assert (fetched.model, fetched.served_name) == ("inner", "public")
    return fetched.names


def test_files_are_served_beside_the_weights_and_the_log_says_what_they_cost(
    tmp_path: Path,
) -> None:
    with capture() as lines:
        module = offered(Files(folder(tmp_path / "model")))
    assert names(tmp_path / "cache") == ("config.json",)
    assert receive(nn.Linear(4, 4)).ok, "weights are served as ever"
    said = line_of(lines, "netloader.files.offered")
    assert (said["netloader.files.count"], said["netloader.files.bytes"]) == (1, 2)
    assert isinstance(module, nn.Linear)


def test_code_is_served_where_the_engine_runs_it(tmp_path: Path) -> None:
    module = offered(Files(folder(tmp_path / "model"), frozenset({Kind.CODE})))
    assert names(tmp_path / "cache", WITH_CODE) == ("config.json", "modeling.py")
    del module


@pytest.mark.parametrize(("role", "changes"), [(TARGET, {"rank": 1}), (DRAFT, {})])
def test_only_the_first_rank_serves_files_and_only_of_its_target(
    tmp_path: Path, role: str, changes: dict[str, Any]
) -> None:
    module = offered(Files(folder(tmp_path / "model")), role, **changes)
    with pytest.raises(FilesError, match="offers no files"):
        names(tmp_path / "cache")
    del module


def test_a_folder_that_cannot_be_read_costs_its_files_alone(tmp_path: Path) -> None:
    with capture() as lines:
        module = offered(Files(tmp_path / "gone"))
    assert "netloader.files.refused" in events(lines)
    assert receive(nn.Linear(4, 4)).ok
    del module
