"""The canonical encoding that digests and proofs are computed over: one encoding per value.

The encoding is that of BEP 3 (bencode): a text is its length in UTF-8 bytes, a colon and those
bytes; an integer is `i`, decimal digits, `e`; a list is `l`, its items, `e`; a mapping is `d`, its
keys (ordered by their bytes) each with its value, `e`. A float is written as a text of 8 bytes, an
IEEE 754 double, most significant byte first. A dataclass is the mapping of its fields.
"""

import struct
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum


def canonical(value: object) -> bytes:
    """The bytes of texts, numbers, and lists, mappings and dataclasses of them, however nested.

    Any text is allowed, half a surrogate pair too. Raises TypeError for anything else.
    """
    if isinstance(value, str):
        return canonical_text(value)
    if isinstance(value, bool):
        raise TypeError("a truth has no canonical form here; no message has one")
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, tuple | list):
        return b"l%be" % b"".join(map(canonical, value))
    if isinstance(value, Mapping):
        pairs = sorted((str(key).encode(errors="surrogatepass"), value[key]) for key in value)
        return b"d%be" % b"".join(_counted(key) + canonical(item) for key, item in pairs)
    if isinstance(value, float):
        return _counted(struct.pack(">d", value))
    if isinstance(value, Enum):
        return canonical(value.value)
    if is_dataclass(value):
        return canonical({field.name: getattr(value, field.name) for field in fields(value)})
    raise TypeError(f"no canonical form for {type(value).__name__}")


def canonical_text(text: str) -> bytes:
    """The bytes of a text: as `canonical`."""
    return _counted(text.encode(errors="surrogatepass"))


def _counted(data: bytes) -> bytes:
    return b"%d:%b" % (len(data), data)
