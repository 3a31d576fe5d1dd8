"""A wait for a peer that does nothing lasts one stall deadline, not two."""

import pytest
import torch
from torch import nn

from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from tests.unit.io.helpers import MIB, module_of
from tests.unit.io.transports.ends import Join

STALL_S = 3.0


def large() -> nn.Module:
    """More than the buffers of a connection hold."""
    return module_of(w=torch.zeros(32 * MIB, dtype=torch.uint8))


@pytest.mark.parametrize("taken", [0, 5 * MIB])
def test_a_receiver_that_reads_no_more_is_noticed_after_one_stall_deadline(
    join: Join, taken: int
) -> None:
    # A send call that moved some of its bytes returns when its time is up. What is left may fit
    # into the buffers all the same; the next call must not wait for the whole deadline again.
    ends = join("tcp", large(), large(), stall_s=STALL_S, segment_bytes=4 * MIB)
    ends.open()
    sent = ends.send()
    room = bytearray(64 << 10)
    while taken > 0:
        taken -= ends.near[0].recv_into(room)
    start = monotonic()

    assert sent.wait(4 * STALL_S)
    assert sent.failure[0].reason is Reason.TRANSFER_STALLED
    assert monotonic() - start < STALL_S + 2
