"""Smaller inputs, and a corpus without two that reach the same."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from netloader.fsm.events import Violated
from netloader.fsm.session import FRAME_AFTER_TRUST
from netloader.wire.frames import Decoder
from tests.fuzz.conversation import Conversation, document_of, framed
from tests.fuzz.targets import TARGETS, Landmarks, numbers

Keeps: TypeAlias = Callable[[bytes], bool]

KEPT_AT_ONCE: Final = 5
"""Inputs for each target that one call of `keep_new` adds: somebody has to name them."""


def shrunk(data: bytes, keeps: Keeps) -> bytes:
    """`data` with everything left out that it does not need to keep what `keeps` asks for."""
    size = len(data) // 2
    while size:
        at = 0
        while at < len(data):
            shorter = data[:at] + data[at + size :]
            if keeps(shorter):
                data = shorter
            else:
                at += size
        size //= 2
    return data


def shrink_finding(target: str, file: Path) -> Path:
    """Write the smallest input found that fails in the same way beside `file`."""
    why = complaint(target, file.read_bytes())
    if not why:
        raise SystemExit(f"{file} breaks no promise of {target}")
    small = file.with_name(f"{file.name}-small")
    small.write_bytes(shrunk(file.read_bytes(), lambda data: complaint(target, data) == why))
    return small


def complaint(target: str, data: bytes) -> str:
    """How an input fails: the exception and the first words of it; '' when it does not."""
    try:
        TARGETS[target](data)
    except Exception as error:  # whatever it is
        return f"{type(error).__name__} {str(error).split(':')[0]}"
    return ""


def keep_new(corpus: Path, grown: Path) -> Iterator[Path]:
    """Add to the corpus, cut down, the few of the fuzzer's inputs that reach most that is new."""
    for target in TARGETS:
        reached: Landmarks = set()
        for file in (corpus / target).iterdir():
            reached |= landmarks(target, file.read_bytes())
        found = {data: landmarks(target, data) for data in contents(grown / target)}
        for _ in range(KEPT_AT_ONCE):
            best = max(found, key=lambda data: len(found[data] - reached), default=b"")
            new = found.get(best, set()) - reached
            if not new:
                break
            small = shrunk(best, partial(reaches, target, new))
            reached |= landmarks(target, small)
            name = f"{outcome(target, small)}-found-{hashlib.sha256(small).hexdigest()[:8]}"
            kept = corpus / target / name
            kept.write_bytes(small)
            yield kept


def contents(folder: Path) -> list[bytes]:
    """What the files of a folder hold, smallest first."""
    return sorted((file.read_bytes() for file in folder.glob("*")), key=len)


def outcome(target: str, data: bytes) -> str:
    """How it ends for an input, in the word that the name of its file begins with.

    `heard`, `refused` or (a stream that is not whole) `waiting`; of a session, its state.
    """
    head, _, rest = data.partition(b"\n")
    match target:
        case "sessions":
            conversation = Conversation(head)
            for line in data.split(b"\n")[1:]:
                conversation.take(line)
            return conversation.session.state.value
        case "documents":
            limit, arriving = FRAME_AFTER_TRUST, framed(document_of(head, rest))
        case _:
            (limit, *_), arriving = numbers(head), rest
    decoder = Decoder(limit)
    heard = decoder.feed(arriving)
    if heard and isinstance(heard[-1], Violated):
        return "refused"
    return "waiting" if decoder.buffered or not heard else "heard"


def reaches(target: str, wanted: Landmarks, data: bytes) -> bool:
    """Whether an input reaches all that is wanted."""
    return wanted <= landmarks(target, data)


def landmarks(target: str, data: bytes) -> Landmarks:
    """What an input reaches; nothing when it breaks a promise, for then it is a finding."""
    try:
        return TARGETS[target](data)
    except Exception:  # as above
        return set()
