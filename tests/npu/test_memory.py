"""Memory that a failed operation was given. It is kept, and never reused.

torch_npu's allocator records an event on the stream of an operation when its memory is freed, and
ends the process when the stream has failed meanwhile (seen in test_sim_hccl_failures.py). An engine
frees what it likes: the parameters that it repacks after loading, for one.
"""

import signal
from pathlib import Path
from typing import Final

import pytest

from tests.npu.topology import SHORT, Cast
from tests.support.peers import Halt
from tests.support.planting import copied, planted

GUARDS: Final = {
    "hccl never sees the model": (
        "netloader/io/transports/backends.py",
        r"in_place=False,  # see DeviceSlot\.clear",
        "in_place=True,",
    ),
    "staging memory is kept": (
        "netloader/io/transports/device_slot.py",
        r"if not self\._tainted:",
        "if True:",
    ),
}


def filled_by_the_second(cast: Cast, source: str = "") -> str:
    """A client whose first source died in the middle frees its model; what became of it."""
    first, second = cast.server(model="large"), cast.server(model="large")
    client = cast.client(
        first, second, halt=Halt("wait", share=0.3), source=source, deadlines=SHORT
    )
    client.reached()
    first.signal(signal.SIGKILL)
    client.tell("go on")
    try:
        outcome = client.hear()
        client.tell("free")
        client.hear()
    except EOFError:
        return "dead"
    return "alive" if outcome["ok"] else f"not filled: {outcome}"


def test_a_client_frees_what_it_likes_after_a_source_has_died(cast: Cast) -> None:
    assert filled_by_the_second(cast) == "alive"


@pytest.mark.parametrize("guard", GUARDS)
def test_without_its_guard_the_client_dies(cast: Cast, tmp_path: Path, guard: str) -> None:
    copy = copied(tmp_path, "netloader")
    with planted(copy, *GUARDS[guard]):
        assert filled_by_the_second(cast, str(copy)) != "alive"
