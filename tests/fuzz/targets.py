"""What is promised to any bytes at all. A target takes bytes; it raises when a promise is broken.

It answers with landmarks: in words, what the bytes reached. Whoever searches for more inputs keeps
those that reach something new. docs/contribute/fuzzing.md shows how the bytes of a target are
written down.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import cycle
from typing import Final, TypeAlias

from netloader.fsm.events import Violated
from netloader.fsm.session import FRAME_AFTER_TRUST
from netloader.wire.frames import HEADER, PREFIX, Decoder, Heard, encode
from tests.fuzz.conversation import Conversation, document_of, framed
from tests.fuzz.second_opinion import KINDS, Misfit, marks, opinion

Landmarks: TypeAlias = set[str]
Target: TypeAlias = Callable[[bytes], Landmarks]

MANY_EXTENTS: Final = 4096
"""An input of one target is at most this many reads."""

OUR_WORDS: Final = re.compile(
    r"bytes of another protocol"
    r"|a TLS handshake, and this side has no TLS; set TLS_CERT and TLS_KEY here"
    r"|frame version \d{1,3}, this side reads 1"
    r"|a frame of \d{1,10} bytes where \d+ are allowed"
    r"|a frame that is no message|a message of an unknown kind"
    rf"|a ({'|'.join(KINDS)}) with a field missing or of a wrong type"
)
"""Everything a violation may say: nothing of the peer's text is among it."""


# -- stream --------------------------------------------------------------------------------------


def stream(data: bytes) -> Landmarks:
    """Bytes of a connection: a line `limit 4096 extents 1 7 300`, then what arrives.

    The extents are used over and over; without a line's numbers the stream arrives whole.
    """
    head, _, arriving = data.partition(b"\n")
    limit, *sizes = numbers(head)
    sizes = sizes if sum(sizes) * MANY_EXTENTS >= len(arriving) * len(sizes) else []
    expected = reference(arriving, limit)

    whole = Decoder(limit)
    heard = fed(whole, limit, arriving, dead=False)
    same(heard, expected)
    again: list[Heard] = []
    cut = Decoder(limit)
    for extent in extents(arriving, sizes):
        again += fed(cut, limit, extent, dead=bool(again) and isinstance(again[-1], Violated))
    assert again == heard, "how a stream is cut does not matter"
    assert cut.buffered == whole.buffered, "nor for what is held back"
    assert as_wanted(arriving, limit, expected) == heard, "nor for one who reads frame by frame"
    for item in heard:
        repeated(item)
    return {*map(in_words, heard), f"held {whole.buffered.bit_length()}", f"{len(heard)} heard"}


def numbers(head: bytes) -> list[int]:
    """The limit and the sizes of the extents, as the first line of a stream names them."""
    return [int(number) for number in re.findall(rb"\d{1,5}", head)] or [4096]


def fed(decoder: Decoder, limit: int, data: bytes, *, dead: bool) -> list[Heard]:
    """Feed once, and look at what must hold after any feed; `dead` after a violation."""
    items = decoder.feed(data)
    assert not (dead and items), "nothing is heard after a violation"
    bad = [place for place, item in enumerate(items) if isinstance(item, Violated)]
    assert bad in ([], [len(items) - 1]), "one violation, and nothing after it"
    dead = dead or bool(bad)
    assert decoder.buffered < limit + HEADER.size, "bounded"
    most = FRAME_AFTER_TRUST if dead else limit
    assert 0 < decoder.wanted <= most + HEADER.size, "bounded, and never a read of nothing"
    assert not (dead and decoder.buffered), "a dead decoder holds nothing"
    return items


def repeated(item: Heard) -> None:
    """What was heard can be said again, and is heard the same."""
    if isinstance(item, Violated):
        assert OUR_WORDS.fullmatch(item.detail), "in our own words"
    else:
        again = encode(item)
        assert Decoder(len(again)).feed(again) == [item], "heard again as it was said"


def in_words(item: Heard) -> str:
    """What was heard, as a landmark."""
    return re.sub(r"\d+", "N", item.detail) if isinstance(item, Violated) else type(item).__name__


def extents(data: bytes, sizes: list[int]) -> Iterable[bytes]:
    """`data` cut into extents of these sizes, over and over."""
    at = 0
    for size in cycle(sizes or [len(data) + 1]):
        yield data[at : at + size]
        at += size
        if at >= len(data):
            return


def reference(data: bytes, limit: int) -> list[bytes | None]:
    """The documents in a stream, read in the plainest way; a None where the stream goes wrong."""
    found: list[bytes | None] = []
    while data:
        if data[: len(PREFIX)] != PREFIX[: len(data)]:
            return [*found, None]
        if len(data) < HEADER.size:
            return found
        length = int.from_bytes(data[len(PREFIX) : HEADER.size], "big")
        if length > limit:
            return [*found, None]
        end = HEADER.size + length
        if len(data) < end:
            return found
        found.append(data[HEADER.size : end])
        data = data[end:]
    return found


def same(items: list[Heard], expected: list[bytes | None]) -> None:
    """Whether these were heard of those documents; a document that is no message ends it."""
    for item, document in zip(items, expected, strict=False):
        agree(item, document)
    if len(items) < len(expected):
        assert items, "the first document is answered"
        assert isinstance(items[-1], Violated), "only a violation leaves something unheard"
    assert len(items) <= len(expected), "nothing is heard that was not said"


def as_wanted(data: bytes, limit: int, expected: list[bytes | None]) -> list[Heard]:
    """Read like a driver: never more than `wanted`, and so never more than one message."""
    decoder, at, spoken, items = Decoder(limit), 0, 0, list[Heard]()
    while at < len(data):
        wanted = decoder.wanted
        more = fed(decoder, limit, data[at : at + wanted], dead=False)
        at = min(at + wanted, len(data))
        assert len(more) <= 1, "one message at most"
        assert not (more and decoder.buffered), "and not a byte of what follows"
        items += more
        if more and isinstance(more[0], Violated):
            break
        if more:
            spoken += HEADER.size + len(expected[len(items) - 1] or b"")
        assert spoken + decoder.buffered == at, "every byte is heard or held"
    return items


# -- documents -----------------------------------------------------------------------------------


def documents(data: bytes) -> Landmarks:
    """One well-made frame: a line with the kind, then the body. Neither has to be JSON."""
    kind, _, body = data.partition(b"\n")
    document = document_of(kind, body)
    items = fed(Decoder(FRAME_AFTER_TRUST), FRAME_AFTER_TRUST, framed(document), dead=False)
    assert len(items) == 1, "a whole frame is answered at once"
    agree(items[0], document)
    repeated(items[0])
    outcome = in_words(items[0])
    return {outcome, *(f"{outcome}: {mark}" for mark in marks(document))}


def agree(item: Heard, document: bytes | None) -> None:
    """The decoder and a second reader take a document for the same, in the same types."""
    if document is None:
        assert isinstance(item, Violated), "a broken frame is a violation"
        return
    second = opinion(document)
    if isinstance(second, Misfit):
        assert isinstance(item, Violated), f"heard, but it is no message: {second.why}"
    elif isinstance(item, Violated):
        assert not second.sure, f"a message is refused: {item.detail}"
    else:
        assert repr(item) == repr(second.message), "heard is what was said, type by type"


# -- sessions ------------------------------------------------------------------------------------


def sessions(data: bytes) -> Landmarks:
    """A conversation with a session: a line with its life so far, then a line for each event.

    An event is one of the local words (`works`, `fails`, `late`, `lost`, `stop`), or the kind of
    a message and its body.
    """
    life, *lines = data.split(b"\n")
    conversation = Conversation(life)
    for line in lines:
        conversation.take(line)
    conversation.end()
    return conversation.reached


TARGETS: Final[Mapping[str, Target]] = {
    "stream": stream,
    "documents": documents,
    "sessions": sessions,
}
