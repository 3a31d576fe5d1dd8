"""Transports of installed packages: found by their entry points, and named when they are broken."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netloader.io.transports import ENTRY_POINTS, TRANSPORTS, Registry
from netloader.io.transports import _installed as installed
from netloader.io.transports.tcp import TCP
from netloader.log import get_logger

GOOD = """
from netloader.io.transports.tcp import Tcp

class Pigeon(Tcp):
    name = "pigeon"

PIGEON = Pigeon()
NOTHING = 5
"""


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Registry]:
    """Installs a package with an entry point, and finds what is installed as netloader does."""

    TRANSPORTS.known()  # what is installed is looked for once, so not while a test's package is

    def install(entry: str) -> Registry:
        info = tmp_path / "pigeons-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pigeons\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{entry}\n")
        (tmp_path / "pigeons_of_a_test.py").write_text(GOOD)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "pigeons_of_a_test", raising=False)
        return Registry({"tcp": lambda: TCP}, installed)

    return install


def test_one_that_is_installed_is_known_and_comes_first(
    distribution: Callable[[str], Registry],
) -> None:
    registry = distribution("pigeon = pigeons_of_a_test:PIGEON")

    assert registry.known() == ("pigeon", "tcp")
    assert registry.named("pigeon").name == "pigeon"
    assert registry.suited("cpu", get_logger("client")) == ("pigeon", "tcp")
    assert "pigeon" not in TRANSPORTS.known()


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("pigeon = pigeons_of_a_test:GONE", "pigeon cannot be imported: AttributeError"),
        ("pigeon = no_such_module:PIGEON", "pigeon cannot be imported: ModuleNotFoundError"),
        ("pigeon = pigeons_of_a_test:NOTHING", "NOTHING is no transport named pigeon"),
        ("dove = pigeons_of_a_test:PIGEON", "PIGEON is no transport named dove"),
    ],
)
def test_a_broken_installed_transport_is_left_out_and_logged(
    distribution: Callable[[str], Registry], captured: list[dict[str, Any]], entry: str, why: str
) -> None:
    registry, name = distribution(entry), entry.split(maxsplit=1)[0]

    assert registry.suited("cpu", get_logger("client")) == ("tcp",)
    (line,) = captured
    assert line["netloader.transport"] == name
    assert why in line["netloader.detail"]
    with pytest.raises(ValueError, match=why):
        registry.named(name)


def test_it_does_not_take_the_place_of_one_that_is_built_in(
    distribution: Callable[[str], Registry],
) -> None:
    registry = distribution("tcp = pigeons_of_a_test:PIGEON")

    assert registry.named("tcp") is TCP
