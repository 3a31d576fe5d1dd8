"""Which tensors share bytes. Two that overlap are always found.

Views of one buffer that do not overlap are separate tensors: a model may keep all its parameters in
one buffer, or each in its own. Only the bytes decide, so the storage object is not looked at.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import TypeAlias

from torch import Tensor

MAX_PAIRS_OF = 64
"""Among more strided tensors that lie within each other than this, pairs are not compared; all of
them count as sharing."""


AddressRange: TypeAlias = tuple[int, int, int]
"""The addresses of a tensor's first byte and of the one after its last; its number."""


def address_range_of(number: int, tensor: Tensor, nbytes: int, *, dense: bool) -> AddressRange:
    """The address range of a tensor of `nbytes` (elements times element size; not 0)."""
    begin = tensor.data_ptr()
    if dense:
        return begin, begin + nbytes, number
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (reach + 1) * tensor.element_size(), number


def first_of(rows: Iterable[Sequence[AddressRange]], tensors: Sequence[Tensor]) -> dict[int, int]:
    """For each tensor that shares bytes: the lowest number among those that it is tied to by them.

    Each row has the ranges of one device. Sharing counts through others: a whole and two halves of
    it are one group. Takes O(n log n).
    """
    first: dict[int, int] = {}
    for row in rows:
        for cluster in _clusters(sorted(row)):
            for group in _groups(cluster, tensors):
                first.update(dict.fromkeys(group, min(group)))
    return first


def _clusters(row: Sequence[AddressRange]) -> Iterator[list[AddressRange]]:
    """Runs of ranges that lie within each other; those that lie alone are left out."""
    cluster: list[AddressRange] = []
    before, reached = (0, 0, 0), 0
    for address_range in row:
        begin, end, _ = address_range
        if begin < reached:
            cluster = cluster or [before]
            cluster.append(address_range)
        elif cluster:
            yield cluster
            cluster = []
        before = address_range
        if end > reached:
            reached = end
    if cluster:
        yield cluster


def _groups(cluster: list[AddressRange], tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """A cluster, split where holes keep its tensors apart; groups of one are left out."""
    if len(cluster) > MAX_PAIRS_OF:
        yield [number for _, _, number in cluster]
        return
    group_of = {number: [number] for _, _, number in cluster}
    for one, other in combinations(cluster, 2):
        mine, theirs = group_of[one[2]], group_of[other[2]]
        if mine is not theirs and not _apart(one, other, tensors):
            mine += theirs
            group_of.update(dict.fromkeys(theirs, mine))
    yield from {id(g): g for g in group_of.values() if len(g) > 1}.values()


def _apart(one: AddressRange, other: AddressRange, tensors: Sequence[Tensor]) -> bool:
    """Whether two tensors provably share no byte.

    Each consists of runs of bytes at multiples of its strides, so modulo the greatest divisor of
    all strides each is one run. That distinguishes columns of a matrix, and every second element.
    """
    if one[1] <= other[0] or other[1] <= one[0]:
        return True
    my_run, my_steps = _runs(tensors[one[2]])
    their_run, their_steps = _runs(tensors[other[2]])
    period = math.gcd(*my_steps, *their_steps)
    distance = (other[0] - one[0]) % period if period else 0
    return my_run <= distance and distance + their_run <= period


def _runs(tensor: Tensor) -> tuple[int, list[int]]:
    """The bytes that a tensor has in one extent, and the distances between such extents."""
    run = tensor.element_size()
    steps: list[int] = []
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        step = stride * tensor.element_size()
        if size == 1 or not step:
            continue
        if step == run and not steps:
            run *= size
        else:
            steps.append(step)
    return run, steps
