"""`import netloader`: light, and every public name is there when it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

import netloader

REPOSITORY = Path(__file__).parents[2]
HEAVY = {"torch", "structlog", "transitions", "msgspec", "blake3", "vllm", "asyncio"}


def fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_loads_nothing_heavy() -> None:
    loaded = fresh("import netloader, sys; dir(netloader); print(*sys.modules)").split()

    assert not HEAVY & {*loaded}


def test_the_import_costs_less_than_that_of_two_modules_of_the_standard_library() -> None:
    code = (
        "from time import perf_counter as now; a = now(); import netloader; b = now();"
        "import asyncio, json; print((b - a) / (now() - b))"
    )

    assert min(float(fresh(code)) for _ in range(5)) < 1


def test_every_public_name_is_found_when_it_is_used() -> None:
    code = "import netloader; print(*(getattr(netloader, n).__name__ for n in netloader.__all__))"

    found = [name.rpartition(".")[2] for name in fresh(code).split()]
    assert found == netloader.__all__


def test_a_star_import_brings_every_public_name() -> None:
    code = "from netloader import *; import netloader; print({*netloader.__all__} - {*globals()})"

    assert fresh(code).strip() == "set()"


def test_names_that_need_no_torch_load_none() -> None:
    light = "Deadlines, Endpoint, Identity, Reason, Role, Secret, State, WeightsError, errors"
    loaded = fresh(f"import sys; from netloader import {light}; print(*sys.modules)").split()

    assert "torch" not in loaded


def test_dir_lists_the_public_names_before_they_are_used() -> None:
    assert fresh("import netloader; print({*netloader.__all__} - {*dir(netloader)})") == "set()\n"


def test_a_name_is_the_same_object_wherever_it_is_imported_from() -> None:
    from netloader import errors, io

    for name in io.__all__:
        assert getattr(netloader, name) is getattr(io, name)
    assert netloader.errors is errors
    assert netloader.UnsafeError is errors.UnsafeError


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'netloader' has no attribute 'serv'"):
        getattr(netloader, "serv")  # noqa: B009 - type checkers know that it is not there
