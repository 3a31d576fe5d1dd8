"""Checks that every wait ends, that nothing is left, and that nothing moves after the end."""

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

from netloader.io.failure import TransferError
from netloader.io.store.module import named_tensors
from netloader.testing.conformance.calls import (
    MARGIN_S,
    PROMPT_S,
    SOON_S,
    Call,
    eventually,
    must,
)
from netloader.testing.conformance.ends import Ends, Subject, lane_pair
from netloader.testing.conformance.resources import check_nothing_more, holdings, shared_files
from netloader.testing.conformance.stores import contents, medium, one_byte, staged

Side = Literal["sender", "receiver"]
HELD = 3
"""Which read or segment is held in the middle of a transfer."""
POISON = 0xA5
SOME = 4096
"""A run of one value that is longer than any in random bytes."""
UNTRUSTED: tuple[Mapping[str, str], ...] = (
    {},
    {"": ""},
    dict.fromkeys(("pid", "fd", "host", "port", "address", "key", "name", "id"), "\x00" * 40),
)
MOST_LANES = 64
NEVER_S = 60.0
"""A stall deadline that must not be what ends a call."""


def _run(ends: Ends, side: Side) -> Call:
    return ends.send() if side == "sender" else ends.receive()


def _other(side: Side) -> Side:
    return "receiver" if side == "sender" else "sender"


def _held(subject: Subject, side: Side) -> tuple[Ends, Call, Call]:
    """Two ends in the middle of a transfer; `side` waits for the other one, which is held.

    Returns the ends, the call of the side that waits, and that of the other one.
    """
    if side == "sender":
        ends = Ends(subject, medium, hold_write=HELD)
    else:
        ends = Ends(subject, medium, hold_read=HELD)
    try:
        ends.open()
        waiting, other = _run(ends, side), _run(ends, _other(side))
        ends.hold(other)
    except BaseException:
        ends.__exit__(None, None, None)
        raise
    return ends, waiting, other


def _patient(subject: Subject) -> Subject:
    return replace(subject, stall_s=NEVER_S)


def abort_before_run(subject: Subject, side: Side) -> None:
    """After an abort, `run` raises at once."""
    with Ends(_patient(subject), medium) as ends:
        ends.open()
        ends.abort(side)
        ends.abort(side)
        _run(ends, side).failure(PROMPT_S + MARGIN_S)
        ends.finish()


def abort_while_running(subject: Subject, side: Side) -> None:
    """An abort ends a `run` that waits for its peer in the middle."""
    ends, waiting, other = _held(_patient(subject), side)
    with ends:
        threads = [threading.Thread(target=ends.abort, args=(side,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        ends.abort(side)
        waiting.failure(PROMPT_S + MARGIN_S)
        for thread in threads:
            thread.join(SOON_S)
        ends.release()
        ends.abort(_other(side))
        other.without_bug(PROMPT_S + MARGIN_S)
        ends.finish()


def abort_without_peer(subject: Subject, side: Side) -> None:
    """An abort ends a `run` whose peer has not begun."""
    with Ends(_patient(subject), medium) as ends:
        ends.open()
        waiting = _run(ends, side)
        waiting.ended(subject.stall_s / 4)
        ends.abort(side)
        waiting.without_bug(PROMPT_S + MARGIN_S)
        ends.finish()


def abort_after_run(subject: Subject, side: Side) -> None:
    """An abort after a `run` raises nothing, and the next `run` ends."""
    with Ends(_patient(subject), medium) as ends:
        ends.open()
        ends.move()
        ends.abort(side)
        _run(ends, side).failure(PROMPT_S + MARGIN_S)
        ends.check_arrived()
        ends.finish()


def stall(subject: Subject, side: Side) -> None:
    """A peer that does nothing any more is noticed after one stall deadline."""
    ends, waiting, other = _held(subject, side)
    with ends:
        waiting.failure(subject.stall_s + PROMPT_S + MARGIN_S)
        ends.release()
        other.without_bug(subject.stall_s + SOON_S)
        ends.finish()


def peer_ends(subject: Subject, side: Side) -> None:
    """The end of one side ends the `run` of the other, at the latest with the stall deadline."""
    ends, waiting, other = _held(subject, side)
    with ends:
        ends.abort(_other(side))
        ends.release()
        other.without_bug(PROMPT_S + SOON_S)
        ends.end(_other(side))
        waiting.without_bug(subject.stall_s + PROMPT_S + MARGIN_S)
        ends.finish()


def end_without_run(subject: Subject) -> None:
    """Ends that were not used, or only opened, are ended without an error."""
    with Ends(subject, one_byte) as ends:
        ends.finish()
    with Ends(subject, one_byte) as ends:
        ends.open()
        ends.finish()


def untrusted_peer(subject: Subject) -> None:
    """For any input of a peer, `open` and `answered` return or raise a TransferError."""
    for said in UNTRUSTED:
        with Ends(subject, one_byte) as ends:
            ends.rendezvous()
            opening = ends.at_client("open", partial(ends.receiver.open, said))
            opening.without_bug(subject.stall_s + PROMPT_S + MARGIN_S)
            ends.at_server("answered", partial(ends.sender.answered, said)).without_bug()
            ends.finish()


def passed_over(subject: Subject) -> None:
    """A sender whose client takes another transport holds nothing that a second session needs."""
    with Ends(subject, one_byte, session="a" * 32) as left:
        left.rendezvous()
        with Ends(subject, one_byte, session="b" * 32) as taken:
            taken.open()
            taken.move()
            taken.check_arrived()
            taken.finish()
        left.finish()


def refused_open(subject: Subject) -> None:
    """Where no lane can be opened, a TransferError says so before anything is written."""
    with Ends(subject, medium) as ends:
        ends.refuses_lanes = True
        before = contents(ends.target)
        told = ends.rendezvous()
        opening = ends.at_client("open", lambda: ends.receiver.open(told))
        opening.without_bug(subject.stall_s + PROMPT_S + MARGIN_S)
        must(contents(ends.target) == before, "the target was written while it was opened")
        ends.finish()


def lanes_any_time(subject: Subject) -> None:
    """Lanes that come twice, unasked, after an abort or after the end are closed in the end."""
    ours, theirs = [], []

    def lane(index: int) -> None:
        near, far = lane_pair()
        ours.append(near)
        theirs.append(far)
        ends.sender.attach(index, far)

    try:
        with Ends(subject, medium) as ends:
            ends.open()
            for index in (0, 0, MOST_LANES - 1):
                lane(index)
            ends.abort("sender")
            lane(1)
            ends.end("sender")
            lane(0)
            ends.finish()
        left = [index for index, sock in enumerate(theirs) if sock.fileno() >= 0]
        must(not left, f"{len(left)} of {len(theirs)} lanes are open after the end")
    finally:
        for sock in (*ours, *theirs):
            sock.close()


# -- leaks ---------------------------------------------------------------------------------------


def _sessions(subject: Subject) -> None:
    """A session that succeeds, one that is aborted in the middle, and two that do not begin."""
    with Ends(subject, staged) as ends:
        ends.open()
        ends.move()
        ends.finish()
    ends, waiting, other = _held(subject, "sender")
    with ends:
        ends.abort("sender")
        waiting.failure(SOON_S)
        ends.release()
        other.without_bug(subject.stall_s + SOON_S)
        ends.finish()
    end_without_run(subject)


def nothing_left(subject: Subject) -> None:
    """Sessions leave no thread, descriptor or shared memory behind."""
    _sessions(subject)  # what libraries make once, and keep
    before, files = holdings(), shared_files()
    for _ in range(2):
        _sessions(subject)
    check_nothing_more(before, files)


def own_descriptors(subject: Subject) -> None:
    """Nothing is closed twice: the number may be another file's by then."""
    with Ends(subject, medium) as ends:
        ends.open()
        ends.move()
        numbers = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(32)]
        same = os.fstat(numbers[0])
        try:
            ends.end("receiver")
            ends.end("sender")
            lost = [number for number in numbers if not _is(number, same)]
            must(not lost, f"the end closed {len(lost)} descriptors of others")
            numbers = [number for number in numbers if number not in lost]
        finally:
            for number in numbers:
                if _is(number, same):
                    os.close(number)
        ends.finish()


def _is(number: int, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(number), wanted)
    except OSError:
        return False


# -- after the end -------------------------------------------------------------------------------


def not_read_after_end(subject: Subject) -> None:
    """When the sender has ended, neither side reads the weights any more."""
    ends, waiting, other = _held(subject, "sender")
    with ends:
        ends.abort("sender")
        waiting.failure(PROMPT_S + MARGIN_S)
        ends.end("sender")
        reads = ends.giving.reads
        for _, tensor in named_tensors(ends.source):
            tensor.fill_(POISON)
        ends.release()
        other.without_bug(subject.stall_s + SOON_S)
        eventually(lambda: ends.giving.reads > reads, PROMPT_S / 2)
        must(ends.giving.reads == reads, "the store was read after the end")
        seen = bytes([POISON]) * SOME in contents(ends.target)
        must(not seen, "what was written into the server's memory after the end arrived")
        ends.finish()


def not_written_after_end(subject: Subject) -> None:
    """When the receiver has ended, nothing is written into the client's memory any more."""
    ends, waiting, other = _held(subject, "receiver")
    with ends:
        ends.abort("receiver")
        waiting.failure(PROMPT_S + MARGIN_S)
        ends.end("receiver")
        for _, tensor in named_tensors(ends.target):
            tensor.fill_(POISON)
        ends.release()
        other.without_bug(subject.stall_s + SOON_S)
        blank = bytes([POISON]) * len(contents(ends.target))
        changed = eventually(lambda: contents(ends.target) != blank, PROMPT_S / 2)
        must(not changed, "the target changed after the end")
        ends.finish()


def ends_once(subject: Subject) -> None:
    """`end` is for the session to call: after `run`, both ends can still be aborted and ended."""
    with Ends(subject, medium) as ends:
        ends.open()
        ends.move()
        for name in ("sender", "receiver"):
            ends.end(name)
            ends.abort(name)
        ends.finish()


def detached(subject: Subject) -> None:
    """A store can be attached again after it was detached, and errors are TransferErrors."""
    with Ends(subject, one_byte) as ends:
        ends.open()
        ends.finish()
        try:
            again = subject.transport.attach(ends.giving)
            again.detach()
        except TransferError as error:
            must(holds=False, seen=f"it cannot be attached again: {error.detail}")


SIDES: tuple[Side, ...] = ("sender", "receiver")
END_CHECKS: dict[str, Callable[[Subject], None]] = {
    **{
        f"{name}-{side}": partial(check, side=side)
        for name, check in (
            ("abort-before-run", abort_before_run),
            ("abort-without-peer", abort_without_peer),
            ("abort-while-running", abort_while_running),
            ("abort-after-run", abort_after_run),
            ("stall", stall),
            ("peer-ends", peer_ends),
        )
        for side in SIDES
    },
    "end-without-run": end_without_run,
    "ends-once": ends_once,
    "detached": detached,
    "passed-over": passed_over,
    "refused-open": refused_open,
    "untrusted-peer": untrusted_peer,
    "lanes-any-time": lanes_any_time,
    "nothing-left": nothing_left,
    "own-descriptors": own_descriptors,
    "not-read-after-end": not_read_after_end,
    "not-written-after-end": not_written_after_end,
}
