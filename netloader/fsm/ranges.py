"""Sets of segment numbers as ranges, their form on the wire. A set has one form.

A range is the first segment and the one after the last. Ranges ascend and do not touch, so there
are at most half as many as there are segments.
"""

from collections.abc import Collection, Iterable
from itertools import chain, pairwise
from typing import TypeAlias

Ranges: TypeAlias = tuple[tuple[int, int], ...]


def ranges_of(segments: Collection[int]) -> Ranges:
    """The ranges of some segments."""
    known = frozenset(segments)
    firsts = sorted(i for i in known if i - 1 not in known)
    ends = sorted(i + 1 for i in known if i + 1 not in known)
    return tuple(zip(firsts, ends, strict=True))


def are_ranges(ranges: Ranges, count: int) -> bool:
    """Whether these are the ranges of some of `count` segments."""
    bounds = (-1, *chain.from_iterable(ranges), count + 1)
    return all(a < b for a, b in pairwise(bounds))


def segments_in(ranges: Iterable[tuple[int, int]]) -> frozenset[int]:
    """The segments of ranges that were checked."""
    return frozenset(chain.from_iterable(range(*each) for each in ranges))
