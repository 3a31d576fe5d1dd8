"""Changes that keep an input's form, so that the fuzzer gets past it: the tree, not the bytes.

Bytes turned at random break the length of a frame or a bracket, and nothing behind those is ever
reached; so here a field goes, changes its type, is repeated, or moves to where it does not belong.
"""

import json
import struct
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final, TypeAlias

from netloader.wire.frames import HEADER, MAGIC, PREFIX
from tests.fuzz.second_opinion import KINDS
from tests.fuzz.targets import reference
from tests.support.histories import LIVES

Node: TypeAlias = dict[str, Any] | list[Any]
Change: TypeAlias = Callable[[bytes, Random], bytes]

ODD: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, -1, 2, 3, 16, 17, 255, 65_535, 65_536, 153_600, 153_604),
    *(2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**40, 10**4299),
    *(0.0, -0.0, 0.5, 1.0, 1e22, 1e308, -1e308, 5e-324, float("inf"), float("nan")),
    *("", "0", "1", "raw", "tcp", "sha256", "weights", "describe", "busy", "verified", "\x00"),
    *("\u202e", "\U0010ffff", "\ud800", "../..", "x" * 300, [], {}, [[]], {"": ""}, [0] * 200),
)
LOCAL_WORDS: Final = (b"works", b"fails", b"late", b"lost", b"stop")
LIVED: Final = tuple(name.encode() for name in LIVES)
NAMED: Final = tuple(kind.encode() for kind in KINDS)
ENOUGH: Final = 64
"""A list is repeated at most to about this many items."""


def tree(text: bytes, random: Random) -> bytes:
    """A JSON document with one thing changed in it; what is no JSON comes back as it is."""
    try:
        root = [json.loads(text)]
    except (ValueError, RecursionError):
        return text
    nodes: list[Node] = [root]
    for node in nodes:
        inside = node.values() if isinstance(node, dict) else node
        nodes += [item for item in inside if isinstance(item, dict | list) and item]
    node = random.choice(nodes)
    _change(node, random.choice(list(node) if isinstance(node, dict) else range(len(node))), random)
    return json.dumps(root[0] if root else None).encode("utf-8", "replace")


def _change(node: Any, key: Any, random: Random) -> None:
    match random.randrange(7):
        case 0:
            del node[key]
        case 1 if isinstance(node, list):
            node *= max(1, min(4, ENOUGH // len(node)))
        case 1:
            node[random.choice(["", "x", "nbytes", key + "_"])] = node[key]
        case 2:
            node[key] = [node[key]]
        case 3 if isinstance(node[key], int):
            node[key] += random.choice([-1, 1, 2**32])
        case 4:
            other = random.choice(list(node) if isinstance(node, dict) else range(len(node)))
            node[key], node[other] = node[other], node[key]
        case _:
            node[key] = random.choice(ODD)


def document(data: bytes, random: Random) -> bytes:
    """Another kind for the body, or another body for the kind."""
    kind, _, body = data.partition(b"\n")
    if random.random() < 0.1:
        kind = random.choice(NAMED)
    return kind + b"\n" + tree(body, random)


def conversation(data: bytes, random: Random) -> bytes:
    """Another life, or a line more, less, moved, repeated or changed."""
    life, *lines = data.split(b"\n")
    at = random.randrange(len(lines) + 1)
    match random.randrange(8):
        case 0:
            life = random.choice(LIVED)
        case 1:
            lines.insert(at, random.choice(LOCAL_WORDS))
        case 2 if lines:
            lines.insert(at, random.choice(lines))
        case 3:
            del lines[at : at + 1]
        case _ if lines:
            at %= len(lines)
            kind, space, body = lines[at].partition(b" ")
            lines[at] = kind + space + tree(body, random)
    return b"\n".join([life, *lines])


def frames(data: bytes, random: Random) -> bytes:
    """Frames with another document in one of them, and the right length for it; or other cuts."""
    head, _, arriving = data.partition(b"\n")
    spoken = [doc for doc in reference(arriving, 2**32) if doc is not None]
    if not spoken or random.random() < 0.2:
        cuts = [random.choice([0, 1, 2, 5, 9, 30, 300]) for _ in range(random.randrange(4))]
        limit = random.choice([0, 26, 34, 200, 4096, 65_536])
        return f"limit {limit} extents {' '.join(map(str, cuts))}\n".encode() + arriving
    at = random.randrange(len(spoken))
    tail = arriving[sum(HEADER.size + len(doc) for doc in spoken) :]
    match random.randrange(4):
        case 0:
            spoken.insert(at, spoken[at])
        case 1:
            del spoken[at]
        case _:
            spoken[at] = tree(spoken[at], random)
    return head + b"\n" + b"".join(map(_frame, spoken)) + tail


def _frame(doc: bytes) -> bytes:
    try:
        return HEADER.pack(MAGIC, PREFIX[-1], len(doc)) + doc
    except struct.error:
        return doc


CHANGES: Final[Mapping[str, Change]] = {
    "stream": frames,
    "documents": document,
    "sessions": conversation,
}
