"""One communicator at a time on a device; on a CPU nobody has to wait."""

import contextlib
import threading

import pytest
import torch

from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.parcels import PARCEL_BYTES
from netloader.io.transports import BusyError
from netloader.io.transports import berth as berth_module
from netloader.io.transports.berth import IN_FLIGHT, MAX_STUCK, Berth, berth_of
from tests.unit.io.helpers import SOON_S

NPU = torch.device("cuda:7")  # never touched: no memory is asked for here


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask what is over without the device, which is not there."""
    monkeypatch.setattr(berth_module, "beside", contextlib.nullcontext)


def test_who_comes_second_is_told_that_the_device_is_busy() -> None:
    berth = Berth(NPU)
    berth.claim("first")

    with pytest.raises(BusyError, match="another transfer has the communicator of cuda:7") as busy:
        berth.claim("second")

    assert busy.value.reason is Reason.BUSY
    berth.leave("second")
    with pytest.raises(BusyError):
        berth.claim("second")
    berth.leave("first")
    berth.claim("second")


def test_a_client_waits_for_its_turn() -> None:
    berth = Berth(NPU)
    berth.claim("server")
    threading.Timer(0.05, berth.leave, ["server"]).start()

    berth.wait_for("client", SOON_S, threading.Event())

    with pytest.raises(BusyError):
        berth.claim("server")


def test_a_client_does_not_wait_for_ever() -> None:
    berth = Berth(NPU)
    berth.claim("server")

    with pytest.raises(BusyError, match=r"another transfer .* of cuda:7; waited 0\.05 s"):
        berth.wait_for("client", 0.05, threading.Event())


def test_who_was_stopped_before_its_turn_came_has_no_place() -> None:
    # The order to open may have been given before the abort, and be carried out after it.
    berth, stopped = Berth(NPU), threading.Event()
    stopped.set()

    with pytest.raises(TransferError, match="aborted"):
        berth.wait_for("client", SOON_S, stopped)

    berth.claim("next")


@pytest.mark.usefixtures("no_device")
def test_groups_that_hang_are_few() -> None:
    berth, over = Berth(NPU), threading.Event()
    for _ in range(MAX_STUCK - 1):
        berth.strand(1, lambda: False)
    berth.claim("first")
    berth.leave("first")
    berth.strand(1, over.is_set)

    with pytest.raises(BusyError, match="communicators of cuda:7 still wait for peers that left"):
        berth.claim("next")
    over.set()
    berth.claim("next")


@pytest.mark.usefixtures("no_device")
def test_a_client_does_not_queue_for_what_takes_minutes() -> None:
    # It would keep a place with its source all the while.
    berth = Berth(NPU)
    berth.strand(MAX_STUCK, lambda: False)

    with pytest.raises(TransferError, match="still wait for peers") as stalled:
        berth.wait_for("client", 0.05, threading.Event())

    assert stalled.value.reason is Reason.TRANSFER_STALLED


def test_a_device_has_one_place_and_a_cpu_one_for_each() -> None:
    assert berth_of(NPU) is berth_of(torch.device("cuda:7"))
    assert berth_of(NPU) is not berth_of(torch.device("cuda:6"))
    assert berth_of(torch.device("cpu")) is not berth_of(torch.device("cpu"))


def test_staging_memory_is_bounded_and_stays_until_it_is_given_back() -> None:
    berth = Berth(torch.device("cpu"))
    staging = berth.staging()

    assert staging.numel() == IN_FLIGHT * PARCEL_BYTES == 64 << 20
    assert berth.staging() is staging
    berth.clear()
    assert berth.staging() is not staging
