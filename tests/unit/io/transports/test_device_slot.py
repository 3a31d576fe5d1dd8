"""One communicator at a time on a device; on a CPU nobody has to wait."""

import contextlib
import threading

import pytest
import torch
from torch import nn

from netloader.fsm.reasons import Reason
from netloader.io.chunks import CHUNK_BYTES
from netloader.io.failure import TransferError
from netloader.io.store.module import ModuleStore
from netloader.io.transports import BusyError
from netloader.io.transports import device_slot as slot_module
from netloader.io.transports.device_slot import IN_FLIGHT, MAX_STUCK, DeviceSlot, DeviceSlots
from netloader.io.transports.process_group import named
from tests.unit.io.helpers import SOON_S

NPU = torch.device("cuda:7")  # never touched: no memory is asked for here


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask what is over without the device, which is not there."""
    monkeypatch.setattr(slot_module, "beside", contextlib.nullcontext)


def test_a_second_session_on_a_device_is_refused_as_busy() -> None:
    slot = DeviceSlot(NPU)
    slot.claim("first")

    with pytest.raises(BusyError, match="another transfer has the communicator of cuda:7") as busy:
        slot.claim("second")

    assert busy.value.reason is Reason.BUSY
    slot.leave("second")
    with pytest.raises(BusyError):
        slot.claim("second")
    slot.leave("first")
    slot.claim("second")


def test_a_client_waits_for_its_turn() -> None:
    slot = DeviceSlot(NPU)
    slot.claim("server")
    threading.Timer(0.05, slot.leave, ["server"]).start()

    slot.wait_for("client", SOON_S, threading.Event())

    with pytest.raises(BusyError):
        slot.claim("server")


def test_a_client_does_not_wait_for_ever() -> None:
    slot = DeviceSlot(NPU)
    slot.claim("server")

    with pytest.raises(BusyError, match=r"another transfer .* of cuda:7; waited 0\.05 s"):
        slot.wait_for("client", 0.05, threading.Event())


def test_a_session_stopped_while_it_waits_does_not_take_the_slot() -> None:
    # The order to open may have been given before the abort, and be carried out after it.
    slot, stopped = DeviceSlot(NPU), threading.Event()
    stopped.set()

    with pytest.raises(TransferError, match="aborted"):
        slot.wait_for("client", SOON_S, stopped)

    slot.claim("next")


@pytest.mark.usefixtures("no_device")
def test_groups_that_hang_are_few() -> None:
    slot, over = DeviceSlot(NPU), threading.Event()
    for _ in range(MAX_STUCK - 1):
        slot.strand(1, lambda: False)
    slot.claim("first")
    slot.leave("first")
    slot.strand(1, over.is_set)

    with pytest.raises(BusyError, match="communicators of cuda:7 still wait for peers that left"):
        slot.claim("next")
    over.set()
    slot.claim("next")


@pytest.mark.usefixtures("no_device")
def test_a_client_does_not_queue_for_what_takes_minutes() -> None:
    # It would keep a place with its source all the while.
    slot = DeviceSlot(NPU)
    slot.strand(MAX_STUCK, lambda: False)

    with pytest.raises(TransferError, match="still wait for peers") as stalled:
        slot.wait_for("client", 0.05, threading.Event())

    assert stalled.value.reason is Reason.TRANSFER_STALLED


def test_a_device_has_one_place_and_a_cpu_one_for_each() -> None:
    slots = DeviceSlots()
    assert slots.of(NPU) is slots.of(torch.device("cuda:7"))
    assert slots.of(NPU) is not slots.of(torch.device("cuda:6"))
    assert slots.of(torch.device("cpu")) is not slots.of(torch.device("cpu"))


def test_all_stores_that_one_transport_moves_take_turns_on_a_device() -> None:
    transport = named("nccl")
    stores = (ModuleStore.of(nn.Linear(2, 2)) for _ in range(2))
    first, second = (transport.attach(store).slots.of(NPU) for store in stores)
    first.claim("first")
    with pytest.raises(BusyError):
        second.claim("second")


def test_staging_memory_is_bounded_and_stays_until_it_is_given_back() -> None:
    slot = DeviceSlot(torch.device("cpu"))
    staging = slot.staging()

    assert staging.numel() == IN_FLIGHT * CHUNK_BYTES == 64 << 20
    assert slot.staging() is staging
    slot.clear()
    assert slot.staging() is not staging
