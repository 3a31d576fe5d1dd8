"""The transports that work everywhere keep the contract, and so does one of somebody else."""

from typing import Final

import pytest

from netloader.io.transports import named
from netloader.testing import check_transport
from netloader.testing.conformance import IN_ONE_PROCESS, IN_TWO_PROCESSES
from tests.conformance import plain

GLOO = named("gloo")
TRANSPORTS: Final = {
    "tcp": "netloader.io.transports.tcp:TCP",
    "shm": "netloader.io.transports.shm:SHM",
    "gloo": f"{__name__}:GLOO",
    "plain": "tests.conformance.plain:PLAIN",
}
"""Where another process imports each from."""


@pytest.mark.parametrize("check", [*IN_ONE_PROCESS, *IN_TWO_PROCESSES])
@pytest.mark.parametrize("name", TRANSPORTS)
def test_a_transport_keeps_the_contract(name: str, check: str) -> None:
    assert check_transport(TRANSPORTS[name], checks=[check]) == (check,)


def test_the_page_checks_its_example_and_names_every_check() -> None:
    names = dict(plain.NAMES)
    exec(compile(plain.BLOCKS[1], plain.PAGE.name, "exec"), names)
    assert names["passed"] == tuple(IN_ONE_PROCESS)

    page = plain.PAGE.read_text()
    for check in (*IN_ONE_PROCESS, *IN_TWO_PROCESSES):
        assert f"`{check.removesuffix('-sender').removesuffix('-receiver')}`" in page
