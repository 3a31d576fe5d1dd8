"""A second source goes on where the first died, in the middle of a tensor, by other means."""

import signal

import pytest

from tests.npu.topology import SHORT, Cast, served
from tests.support.peers import Halt

PAIRS = [("hccl", "tcp"), ("tcp", "hccl")]


@pytest.mark.parametrize("model", ["few_and_large", "both_devices", "few_fractal"])
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_half_a_tensor_of_one_transport_is_made_whole_by_another(
    cast: Cast, first: str, second: str, model: str
) -> None:
    dying = cast.server(model=model, transports=(first,), deadlines=SHORT)
    other = cast.server(model=model, transports=(second,), deadlines=SHORT)
    halt = Halt("wait", share=0.1)
    client = cast.client(dying, other, transports=(first, second), halt=halt, deadlines=SHORT)
    client.reached()
    dying.signal(signal.SIGKILL)
    client.tell("go on")

    served(client, other)
