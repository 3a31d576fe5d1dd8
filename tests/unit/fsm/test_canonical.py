"""Canonical bytes: as documented, and no two data alike."""

import hashlib
import struct
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloader.fsm.canonical import canonical
from netloader.fsm.identity import Identity
from netloader.fsm.manifest import Manifest, TensorSpec
from netloader.fsm.messages import Purpose


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Pair:
    b: int
    a: str


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", b"0:"),
        ("spam", b"4:spam"),
        ("é", b"2:\xc3\xa9"),
        (0, b"i0e"),
        (-42, b"i-42e"),
        (2**70, b"i1180591620717411303424e"),
        ((), b"le"),
        (["a", (1, "b")], b"l1:ali1e1:bee"),
        ({}, b"de"),
        ({"b": "2", "a": "1"}, b"d1:a1:11:b1:2e"),
        ({"é": 1, "z": 2}, b"d1:zi2e2:\xc3\xa9i1ee"),
        (1.5, b"8:\x3f\xf8\0\0\0\0\0\0"),
        (Colour.RED, b"3:red"),
        (Purpose.WEIGHTS, b"7:weights"),
        (Pair(1, "x"), b"d1:a1:x1:bi1ee"),
        (Identity({"m": "x"}), b"d4:hardd1:m1:xe4:softdee"),
    ],
)
def test_data_has_the_bytes_that_are_documented(value: Any, expected: bytes) -> None:
    assert canonical(value) == expected


def test_keys_are_ordered_by_their_bytes_and_not_as_they_were_written() -> None:
    assert canonical({"\U0001f511": 1, "\uffff": 2}) == canonical({"\uffff": 2, "\U0001f511": 1})
    assert canonical({"\U0001f511": 1, "\uffff": 2}).index(b"\xf0") > 4


@pytest.mark.parametrize("value", [None, True, b"bytes", {1}, object(), [None]])
def test_a_type_that_no_message_holds_cannot_be_encoded(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical(value)


any_text = st.text(st.characters())
"""Half surrogate pairs too."""
data = st.recursive(
    st.one_of(any_text, st.integers()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(any_text, inner, max_size=4)
    ),
    max_leaves=8,
)


@given(data)
def test_the_canonical_form_can_be_decoded_so_it_is_unique(value: Any) -> None:
    found, end = read(canonical(value), 0)

    assert found == value
    assert end == len(canonical(value))


def read(data: bytes, at: int) -> tuple[Any, int]:
    """A reader of BEP 3, which knows nothing of netloader."""
    match data[at : at + 1]:
        case b"i":
            end = data.index(b"e", at)
            return int(data[at + 1 : end]), end + 1
        case b"l":
            items, at = [], at + 1
            while data[at : at + 1] != b"e":
                item, at = read(data, at)
                items.append(item)
            return items, at + 1
        case b"d":
            pairs, at = {}, at + 1
            while data[at : at + 1] != b"e":
                key, at = read(data, at)
                pairs[key], at = read(data, at)
            return pairs, at + 1
        case _:
            colon = data.index(b":", at)
            end = colon + 1 + int(data[at:colon])
            return data[colon + 1 : end].decode(errors="surrogatepass"), end


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_two_floats_are_alike_only_when_their_bits_are(one: float, other: float) -> None:
    same = struct.pack("<d", one) == struct.pack("<d", other)
    assert (canonical(one) == canonical(other)) == same


def test_the_digest_of_a_manifest_is_that_of_its_tensors_and_values() -> None:
    spec = TensorSpec("w", "float32", (2, 3), (3, 1), 24, format="nz")
    written = b"ll1:w7:float32li2ei3eeli3ei1eei24ei-1ei0e2:nzee"
    values = b"ll1:v1:7ee"

    manifest = Manifest((spec,), (("v", "7"),))
    assert manifest.digest == hashlib.sha256(written + values).hexdigest()
    assert Manifest(()).digest == hashlib.sha256(b"lele").hexdigest()
    assert len(spec) == 8, "a field more belongs into docs/protocol/conversation.md"
