"""Checks that the right bytes come to the right places."""

import contextlib
from collections.abc import Mapping

from netloader.fsm.reasons import Reason
from netloader.io.store.module import ModuleStore
from netloader.io.transports.base import BusyError
from netloader.testing.conformance.calls import MARGIN_S, must
from netloader.testing.conformance.ends import Ends, Model, Subject
from netloader.testing.conformance.stores import (
    MIB,
    contents,
    empty,
    many_small,
    medium,
    one_big,
    one_byte,
    staged,
)

KIB = 1 << 10
MOST_RENDEZVOUS = 1024
"""Characters; the contract says a few hundred bytes."""


def _arrives(subject: Subject, model: Model, segment_bytes: int) -> None:
    with Ends(subject, model, segment_bytes=segment_bytes) as ends:
        ends.open()
        ends.move()
        ends.check_arrived()
        ends.finish()


def no_bytes(subject: Subject) -> None:
    """A request for no segment ends, and counts nothing."""
    _arrives(subject, empty, MIB)


def single_byte(subject: Subject) -> None:
    """One byte arrives."""
    _arrives(subject, one_byte, MIB)


def small_tensors(subject: Subject) -> None:
    """Thousands of small tensors arrive, many to a segment."""
    _arrives(subject, many_small, 64 * KIB)


def big_tensor(subject: Subject) -> None:
    """A tensor of many segments arrives, whose size is no multiple of anything."""
    _arrives(subject, one_big, 9 * MIB)


def staged_tensors(subject: Subject) -> None:
    """Tensors that are not contiguous arrive, and those beside them."""
    _arrives(subject, staged, 64 * KIB)


def chosen_segments(subject: Subject) -> None:
    """Only the segments asked for are moved."""
    with Ends(subject, medium) as ends:
        before, chosen = contents(ends.target), ends.segments[1::3]
        ends.open()
        ends.move(chosen)
        verified = ends.ledger.progress.verified
        must(verified == {s.index for s in chosen}, f"verified are {sorted(verified)}")
        source, after = contents(ends.source), contents(ends.target)
        for segment in ends.segments:
            span = slice(segment.index * MIB, (segment.index + 1) * MIB)
            wanted = source if segment in chosen else before
            must(after[span] == wanted[span], f"segment {segment.index} has other bytes")
        ends.finish()


def several_runs(subject: Subject) -> None:
    """A session carries one request after the other, if the transport says that it can."""
    if not subject.transport.capabilities.repeatable:
        return
    with Ends(subject, medium) as ends:
        ends.open()
        for first in range(3):
            ends.move(ends.segments[first::3])
        ends.check_arrived()
        ends.finish()


def two_sessions(subject: Subject) -> None:
    """Two sessions at once do not mix; one of them may be refused as busy."""
    with Ends(subject, medium, session="a" * 32) as one, contextlib.ExitStack() as stack:
        one.open()
        try:
            two = stack.enter_context(Ends(subject, one_big, session="b" * 32))
        except BusyError:
            two = None
        if two is not None:
            two.open()
            calls = [two.send(), two.receive()]
        one.move()
        one.check_arrived()
        if two is not None:
            _ = [call.result() for call in calls]
            two.check_arrived()
            two.finish()
        one.finish()


def wrong_bytes(subject: Subject) -> None:
    """Bytes that are not those of the digest are refused, with that reason."""
    with Ends(subject, medium) as ends:
        spoilt = ModuleStore.of(ends.source).place(ends.segments[5].extents[0])
        spoilt[77] += 1
        ends.open()
        sent, received = ends.send(), ends.receive()
        error = received.failure(subject.stall_s + MARGIN_S)
        must(error.reason is Reason.DIGEST_MISMATCH, f"the reason is {error.reason.value}")
        must(5 not in ends.ledger.progress.verified, "the segment counts as verified")
        ends.end("receiver")
        sent.without_bug(2 * subject.stall_s + MARGIN_S)
        ends.finish()


def rendezvous_is_text(subject: Subject) -> None:
    """The sender's rendezvous fits into an offer: a few short texts."""
    with Ends(subject, one_byte) as ends:
        _are_texts(ends.rendezvous())
        ends.finish()


def answer_is_text(subject: Subject) -> None:
    """What the receiver answers fits into an answer: a few short texts."""
    with Ends(subject, one_byte) as ends:
        answer = ends.answer()
        _are_texts(answer)
        for call in ends.join(answer):
            call.result()
        ends.finish()


def _are_texts(told: Mapping[str, str]) -> None:
    texts = [text for pair in told.items() for text in pair]
    must(all(isinstance(text, str) for text in texts), f"{told!r} is not only texts")
    size = sum(map(len, texts))
    must(size <= MOST_RENDEZVOUS, f"it has {size} characters, more than {MOST_RENDEZVOUS}")


BYTES_CHECKS = {
    "no-bytes": no_bytes,
    "single-byte": single_byte,
    "small-tensors": small_tensors,
    "big-tensor": big_tensor,
    "staged-tensors": staged_tensors,
    "chosen-segments": chosen_segments,
    "several-runs": several_runs,
    "two-sessions": two_sessions,
    "wrong-bytes": wrong_bytes,
    "rendezvous-is-text": rendezvous_is_text,
    "answer-is-text": answer_is_text,
}
