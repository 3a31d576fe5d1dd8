"""One communicator at a time on a device; on a CPU nobody has to wait."""

import threading

import pytest
import torch

from netloader.fsm.reasons import Reason
from netloader.io.failure import TransferError
from netloader.io.parcels import PARCEL_BYTES
from netloader.io.transports import BusyError
from netloader.io.transports.berth import IN_FLIGHT, MAX_STUCK, Berth, berth_of
from tests.unit.io.helpers import SOON_S

NPU = torch.device("cuda:7")  # never touched: no memory is asked for here


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

    with pytest.raises(TransferError, match="another transfer on cuda:7 took longer"):
        berth.wait_for("client", 0.05, threading.Event())


def test_groups_that_hang_in_the_making_are_few() -> None:
    berth = Berth(NPU)
    berth.strand(MAX_STUCK)

    with pytest.raises(BusyError, match="communicators of cuda:7 still wait for peers that left"):
        berth.claim("next")
    berth.strand(-1)
    berth.claim("next")


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
