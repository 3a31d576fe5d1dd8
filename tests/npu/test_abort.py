"""The control connection is what notices: when it closes, the group ends, whatever HCCL thinks."""

import signal
from dataclasses import replace
from typing import Final

import pytest

from netloader.io.clock import monotonic
from tests.npu.topology import SHORT, Cast, NpuPeer
from tests.support.peers import Halt

UNAWARE: Final = {"SIM_HCCL_PEER_DEATH": "never"}
PATIENT: Final = replace(SHORT, stall_s=60)
"""No transfer here ends because it takes too long."""
ABORT_S: Final = 2.0
"""It takes milliseconds; a second is promised; two cores may be busy."""


def group_ended_after(cast: Cast, survivor: NpuPeer, dying: NpuPeer) -> float:
    """Seconds from the death of a peer to the end of its group on the other side."""
    died = monotonic()
    dying.signal(signal.SIGKILL)
    survivor.tell("go on")
    end, asked = monotonic() + 30, 0
    while not (gone := cast.trace.of({"HcclCommDestroy"}, survivor.pid)):
        asked += 1
        assert monotonic() < end, f"asked {asked} times"
    return gone[-1].at - died


@pytest.mark.parametrize("dying", ["client", "server"])
def test_the_end_of_the_control_connection_ends_the_group(cast: Cast, dying: str) -> None:
    server = cast.server(model="large", knobs=UNAWARE, deadlines=PATIENT)
    client = cast.client(server, halt=Halt("wait", share=0.3), knobs=UNAWARE, deadlines=PATIENT)
    client.reached()
    if dying == "client":
        seconds = group_ended_after(cast, server, client)
    else:
        seconds = group_ended_after(cast, client, server)

    assert 0 < seconds < ABORT_S
