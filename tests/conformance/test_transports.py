"""The transports that run here keep the contract, and so does one of somebody else."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

from netloader.io.transports import named
from netloader.testing import check_transport
from netloader.testing.conformance import IN_ONE_PROCESS, IN_TWO_PROCESSES
from tests.conformance import plain

ENGINES = Path(__file__).parents[2] / ".cache" / "engines"
"""Where `requirements/engines.txt` is installed: beside the environment, not in it."""
GLOO = named("gloo")
TRANSPORTS: Final = {
    "tcp": "netloader.io.transports.tcp:TCP",
    "shm": "netloader.io.transports.shm:SHM",
    "gloo": f"{__name__}:GLOO",
    "nixl": "netloader.io.transports.nixl:NIXL",
    "mooncake": "netloader.io.transports.mooncake:MOONCAKE",
    "plain": "tests.conformance.plain:PLAIN",
}
"""Where another process imports each from."""
OPTIONAL: Final = {"nixl", "mooncake"}
"""Those whose library may not be there for this platform."""


@pytest.mark.parametrize("check", [*IN_ONE_PROCESS, *IN_TWO_PROCESSES])
@pytest.mark.parametrize("name", TRANSPORTS)
def test_a_transport_keeps_the_contract(
    name: str, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in OPTIONAL:
        monkeypatch.setattr(sys, "path", [*sys.path, str(ENGINES)])
        if find_spec(name) is None:
            pytest.skip(f"{name} is not there: requirements/engines.txt was not installed")
    assert check_transport(TRANSPORTS[name], checks=[check]) == (check,)


def test_the_page_checks_its_example_and_names_every_check() -> None:
    names = dict(plain.NAMES)
    exec(compile(plain.BLOCKS[1], plain.PAGE.name, "exec"), names)
    assert names["passed"] == tuple(IN_ONE_PROCESS)

    page = plain.PAGE.read_text()
    for check in (*IN_ONE_PROCESS, *IN_TWO_PROCESSES):
        assert f"`{check.removesuffix('-sender').removesuffix('-receiver')}`" in page
