"""The gate: netloader over tcp keeps a share of what a plain socket reaches in the same minute."""

import pytest

from benchmarks.gate import LEAST, shares

pytestmark = pytest.mark.timeout(300)


def test_tcp_keeps_its_share_of_a_plain_socket() -> None:
    found = shares()

    for share in found:
        least = LEAST[share.memory]
        print(f"{share.memory.value}: x {share.best:.2f} of a plain socket, at least {least}")
    assert all(share.ok for share in found), found
