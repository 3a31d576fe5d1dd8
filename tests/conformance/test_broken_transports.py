"""Each check of the conformance suite finds the transport with the mistake that it is about."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Final

import pytest

from netloader.testing import TransportCheckError, check_transport
from netloader.testing.conformance import IN_ONE_PROCESS, IN_TWO_PROCESSES
from tests.conformance import broken as b
from tests.conformance.broken import broken

HERE: Final = "tests.conformance.broken"
MISTAKES: Final[dict[str, tuple[Any, str, str]]] = {
    "a request for nothing fails": (broken(b.NeedsSegments), "no-bytes", "IndexError"),
    "the last byte is not sent": (broken(b.DropsLastByte), "single-byte", "Receiver.run raised"),
    "two segments are swapped": (broken(b.SwapsSegments), "big-tensor", "does not match"),
    "bytes are not counted": (broken(b.SendsAll, b.CountsNothing), "small-tensors", "returned 0"),
    "bytes are not put in place": (broken(receiver=b.KeepsItApart), "small-tensors", "other bytes"),
    "bytes are not put together": (broken(receiver=b.KeepsItApart), "staged-tensors", "raised"),
    "more than was asked for is moved": (
        broken(b.SendsAll, b.ReceivesAll),
        "chosen-segments",
        "returned 33554432",
    ),
    "a run ends its session": (broken(b.EndsItself), "several-runs", "Sender.run raised"),
    "a second session is a bug": (broken(b.Alone), "two-sessions", "one at a time"),
    "nothing is verified": (broken(receiver=b.Unverified), "wrong-bytes", "was to raise"),
    "a rendezvous has numbers": (broken(b.SpeaksNumbers), "rendezvous-is-text", "not only texts"),
    "an answer has numbers": (
        broken(receiver=b.AnswersNumbers),
        "answer-is-text",
        "not only texts",
    ),
    "what is there once is held before it is needed": (broken(b.Alone), "passed-over", "one at a"),
    "a lane that is refused is the socket's error": (
        broken(receiver=b.LetsErrorsOut),
        "refused-open",
        "ConnectionRefusedError",
    ),
    "an abort counts once": (broken(b.AbortsOnce), "abort-before-run-sender", "aborted already"),
    "an abort blocks": (broken(receiver=b.AbortBlocks), "abort-before-run-receiver", "blocked"),
    "a sender is deaf": (broken(b.DeafSender), "abort-while-running-sender", "did not end"),
    "a receiver is deaf": (
        broken(receiver=b.DeafReceiver),
        "abort-while-running-receiver",
        "did not end",
    ),
    "a sender is deaf alone": (broken(b.DeafSender), "abort-without-peer-sender", "did not end"),
    "a receiver is deaf alone": (
        broken(receiver=b.DeafReceiver),
        "abort-without-peer-receiver",
        "did not end",
    ),
    "a sender is deaf after a run": (broken(b.DeafSender), "abort-after-run-sender", "did not"),
    "a receiver is deaf after a run": (
        broken(receiver=b.DeafReceiver),
        "abort-after-run-receiver",
        "did not end",
    ),
    "a sender waits for ever": (broken(b.PatientSender), "stall-sender", "did not end"),
    "a receiver waits for ever": (broken(receiver=b.PatientReceiver), "stall-receiver", "did not"),
    "an end of the peer is no end": (broken(b.WaitsForEver), "peer-ends-sender", "did not end"),
    "errors are the socket's": (
        broken(receiver=b.RawErrors),
        "peer-ends-receiver",
        "ConnectionResetError",
    ),
    "an end needs a run": (broken(b.NeedsRun), "end-without-run", "AttributeError"),
    "an abort after the end fails": (broken(receiver=b.AbortNeedsLane), "ends-once", "Attribute"),
    "a store is attached once": (b.OnceOnly(), "detached", "attached already"),
    "a peer is trusted": (broken(b.Told, b.Trusting), "untrusted-peer", "KeyError"),
    "lanes are dropped": (broken(b.KeepsLanes), "lanes-any-time", "lanes are open"),
    "a thread is left": (broken(receiver=b.LeaksThread), "nothing-left", "thread leaked"),
    "a descriptor is left": (broken(receiver=b.LeaksDescriptor), "nothing-left", "/dev/null"),
    "shared memory is left": (broken(b.LeaksSharedMemory), "nothing-left", "shared memory"),
    "a descriptor is closed twice": (broken(b.ClosesTwice), "own-descriptors", "closed 1"),
    "the store is read after the end": (
        broken(b.ReadsAfterEnd),
        "not-read-after-end",
        "read after the end",
    ),
    "memory is read after the end": (b.PULLED, "not-read-after-end", "after the end arrived"),
    "memory is written after the end": (
        broken(receiver=b.WritesAfterEnd),
        "not-written-after-end",
        "changed after the end",
    ),
    "it works in one process only": (f"{HERE}:PULLED", "another-process", "wrong"),
    "a killed client is waited for": (f"{HERE}:WAITS_FOR_EVER", "client-killed", "left behind"),
    "a killed server is waited for": (f"{HERE}:WAITS_FOR_EVER", "server-killed", "UnsafeError"),
}
"""The transport, the check that finds it, and what that says."""


@pytest.fixture(autouse=True)
def cleared() -> Iterator[None]:
    """Takes away what the mistakes leave."""
    yield
    b.FOREVER.set()
    b.FOREVER.clear()
    while b.LeaksDescriptor.leaked:
        os.close(b.LeaksDescriptor.leaked.pop())
    while b.LeaksSharedMemory.leaked:
        b.LeaksSharedMemory.leaked.pop().unlink()
    b.Alone.using.clear()
    b.PulledSender.shown.clear()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_by_the_check_that_is_about_it(mistake: str) -> None:
    transport, check, seen = MISTAKES[mistake]

    with pytest.raises(TransportCheckError) as caught:
        check_transport(transport, checks=[check])
    assert [*caught.value.failures] == [check]
    assert seen in caught.value.failures[check]
    assert check in str(caught.value)


def test_every_check_finds_something() -> None:
    found = {check for _, check, _ in MISTAKES.values()}
    assert {*IN_ONE_PROCESS, *IN_TWO_PROCESSES} == found


def test_all_checks_run_though_some_fail() -> None:
    checks = ["detached", "single-byte", "rendezvous-is-text", "staged-tensors", "no-bytes"]
    with pytest.raises(TransportCheckError, match="the transport plain fails 2 checks") as caught:
        check_transport(broken(b.DropsLastByte), checks=checks)
    assert [*caught.value.failures] == ["single-byte", "staged-tensors"]


@pytest.mark.parametrize(
    ("transport", "checks", "why"),
    [
        (b.PULLED, ["bytes"], "no check is named 'bytes'"),
        (b.PULLED, ["client-killed"], "need 'module:attribute'"),
        ("tests.conformance.broken", [], "is not 'module:attribute'"),
    ],
)
def test_what_cannot_be_checked_is_refused(transport: Any, checks: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_transport(transport, checks=checks)


def test_what_is_no_transport_is_refused() -> None:
    with contextlib.suppress(AttributeError), pytest.raises(TypeError, match="is no transport"):
        check_transport("tests.conformance.broken:HERE")
