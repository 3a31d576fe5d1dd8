"""Whether an operation failed: asked of the works of every torch that users have.

torch 2.10 and 2.11 convert no `Work.exception()` to Python, not even "none": pybind raises
TypeError. vllm-ascend pins 2.10. A work of HCCL answers `is_success` then; one of NCCL does not,
and raises from `wait` what it failed with.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from netloader.io import transports
from netloader.io.transports.backends import BACKENDS, failure

SOON_S = 10.0
GONE = "HCCL function error: the peer is gone"


class Work:
    """An operation that is complete, as torch 2.13 shows it."""

    def __init__(self, error: str | None) -> None:
        self._error = error
        self.waited = False

    def is_completed(self) -> bool:
        return True

    def exception(self) -> Exception | None:
        return None if self._error is None else RuntimeError(self._error)

    def is_success(self) -> bool:
        return self._error is None

    def wait(self) -> None:
        self.waited = True


class HcclWorkOf210(Work):
    """WorkHCCL with torch 2.10: `wait` does not raise, whatever happened."""

    def exception(self) -> Exception | None:
        raise TypeError("Unable to convert function return value to a Python type!")


class NcclWorkOf210(HcclWorkOf210):
    """WorkNCCL with torch 2.10."""

    def is_success(self) -> bool:
        raise NotImplementedError("WorkNCCL::isSuccess() is deprecated")

    def wait(self) -> None:
        if self._error is not None:
            raise RuntimeError(self._error)
        super().wait()


KINDS = pytest.mark.parametrize(
    ("library", "work_of"),
    [("hccl", Work), ("nccl", Work), ("hccl", HcclWorkOf210), ("nccl", NcclWorkOf210)],
    ids=["hccl, torch 2.13", "nccl, torch 2.13", "hccl, torch 2.10", "nccl, torch 2.10"],
)


@KINDS
def test_an_operation_that_went_well_is_waited_for(
    library: str, work_of: Callable[[str | None], Work]
) -> None:
    work = work_of(None)

    BACKENDS[library].wait(work, SOON_S, threading.Event())

    assert work.waited


@KINDS
def test_an_operation_that_failed_raises(
    library: str, work_of: Callable[[str | None], Work]
) -> None:
    with pytest.raises(RuntimeError, match=r"the peer is gone|its peer may be gone"):
        BACKENDS[library].wait(work_of(GONE), SOON_S, threading.Event())


def test_a_failure_without_a_text_is_still_a_failure() -> None:
    assert failure(Work("")) == failure(HcclWorkOf210("")) != ""


def test_the_error_of_a_failed_operation_is_passed_on() -> None:
    assert failure(Work(GONE)) == GONE


def test_no_other_code_asks_a_work_for_its_exception() -> None:
    """Only `failure` knows that some torches cannot answer; what asks elsewhere fails on those."""
    sources = {path.name: path.read_text() for path in Path(transports.__path__[0]).glob("*.py")}
    asking = {name: text.count(".exception()") for name, text in sources.items()}
    assert {name: count for name, count in asking.items() if count} == {"backends.py": 1}
