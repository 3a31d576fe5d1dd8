"""Asking until something is so: a deadline, and an end at once."""

import threading
from itertools import count

import pytest

from netloader.fsm.reasons import Reason
from netloader.io.clock import monotonic
from netloader.io.failure import TransferError
from netloader.io.waiting import poll
from tests.unit.io.helpers import SOON_S


def test_it_ends_when_the_answer_is_yes() -> None:
    asked = count(1)

    poll(lambda: next(asked) == 5, "five", SOON_S, threading.Event())

    assert next(asked) == 6


def test_it_ends_with_the_deadline_and_says_what_did_not_happen() -> None:
    with pytest.raises(TransferError, match=r"rain took longer than 0.05 s") as caught:
        poll(lambda: False, "rain", 0.05, threading.Event())
    assert caught.value.reason is Reason.TRANSFER_STALLED


def test_it_ends_at_once_when_it_is_stopped_from_another_thread() -> None:
    stop = threading.Event()
    asked = count()

    def ready() -> bool:
        if next(asked) == 3:
            threading.Thread(target=stop.set).start()
        return False

    start = monotonic()
    with pytest.raises(TransferError, match="aborted") as caught:
        poll(ready, "rain", 60, stop)
    assert caught.value.reason is Reason.TRANSFER_FAILED
    assert monotonic() - start < SOON_S


def test_what_asking_raises_is_passed_on() -> None:
    def ready() -> bool:
        raise RuntimeError("the device is lost")

    with pytest.raises(RuntimeError, match="the device is lost"):
        poll(ready, "rain", SOON_S, threading.Event())


def test_a_condition_met_while_the_process_was_stopped_is_no_stall() -> None:
    # A process that was stopped, or a machine that was, goes on after its deadline.
    asked = count(1)

    def ready() -> bool:
        if next(asked) == 1:
            threading.Event().wait(0.1)
            return False
        return True

    poll(ready, "rain", 0.05, threading.Event())
