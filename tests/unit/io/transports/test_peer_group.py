"""The moments at which two threads of a pair may meet: nothing is lost, and nothing is kept."""

import threading
import weakref

import pytest

from netloader.io.device import CPU
from netloader.io.failure import TransferError
from netloader.io.transports.device_slot import DeviceSlot
from netloader.io.transports.peer_group import _Joining
from tests.unit.io.helpers import SOON_S, eventually, our_threads


class Group:
    """Something that can be watched as it goes."""


class Late(threading.Event):
    """Set by a thread that is held up just before, or just after."""

    def __init__(self, before_s: float, after: threading.Event) -> None:
        super().__init__()
        self.begun = threading.Event()
        self._before_s = before_s
        self._after = after

    def set(self) -> None:
        self.begun.set()
        threading.Event().wait(self._before_s)
        super().set()
        self._after.wait(SOON_S)


def joining(slot: DeviceSlot, over: Late, group: list[Group]) -> _Joining:
    """A group that is made at once, by a thread that is late to say so."""
    go = threading.Event()

    def connect() -> Group:
        go.wait(SOON_S)
        return group.pop()

    made = _Joining(connect, slot)
    made._over = over
    go.set()
    return made


def test_leaving_while_a_group_is_made_does_not_block_the_device() -> None:
    slot, over, stop = DeviceSlot(CPU), threading.Event(), threading.Event()
    over.set()
    done = Late(0.3, over)
    made = joining(slot, done, [Group()])
    assert done.begun.wait(SOON_S)
    stop.set()

    with pytest.raises(TransferError, match="aborted"):
        made.wait(SOON_S, stop)

    assert eventually(lambda: "netloader-join" not in our_threads())
    slot.claim("next")


def test_a_group_does_not_live_as_long_as_the_thread_that_made_it() -> None:
    group, over = [Group()], threading.Event()
    seen = weakref.ref(group[0])
    made = joining(DeviceSlot(CPU), Late(0.0, over), group)

    assert made.wait(SOON_S, threading.Event()) is seen()

    assert "netloader-join" in our_threads()
    assert seen() is None
    over.set()
