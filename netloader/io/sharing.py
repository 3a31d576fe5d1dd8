"""Which tensors share bytes. Law: two that overlap are never taken for separate.

Views of one buffer that do not overlap are separate tensors: a model may keep all its parameters in
one buffer, or each in its own. Only the bytes decide, so the storage object is not looked at.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from torch import Tensor, device

MAX_PAIRS_OF = 64
"""Among more strided tensors that lie within each other than this, pairs are not compared; all of
them count as sharing."""


class Extent(NamedTuple):
    """Where a tensor lies: the addresses of its first byte and of the one after its last."""

    begin: int
    end: int
    number: int
    """Its place in the manifest."""
    tensor: Tensor
    dense: bool
    """Whether every byte from `begin` to `end` is the tensor's."""


def extent_of(index: int, tensor: Tensor, nbytes: int, *, dense: bool) -> Extent:
    """The extent of a tensor of `nbytes` (elements times element size; not 0)."""
    begin = tensor.data_ptr()
    if dense:
        return Extent(begin, begin + nbytes, index, tensor, dense)
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return Extent(begin, begin + (reach + 1) * tensor.element_size(), index, tensor, dense)


def first_of(extents: Iterable[Extent]) -> dict[int, int]:
    """For each tensor that shares bytes: the lowest index among those that it is tied to by them.

    Sharing counts through others: a whole and two halves of it are one group. Takes O(n log n).
    """
    by_device: dict[device, list[Extent]] = {}
    for extent in extents:
        by_device.setdefault(extent.tensor.device, []).append(extent)
    first: dict[int, int] = {}
    for row in by_device.values():
        for cluster in _clusters(sorted(row)):
            for group in _groups(cluster):
                indices = [extent.number for extent in group]
                first.update(dict.fromkeys(indices, min(indices)))
    return first


def _clusters(row: Sequence[Extent]) -> Iterator[list[Extent]]:
    """Runs of extents that lie within each other; those that lie alone are left out."""
    cluster: list[Extent] = []
    end = 0
    for extent in row:
        if cluster and extent.begin >= end:
            if len(cluster) > 1:
                yield cluster
            cluster = []
        end = max(end, extent.end) if cluster else extent.end
        cluster.append(extent)
    if len(cluster) > 1:
        yield cluster


def _groups(cluster: list[Extent]) -> Iterator[list[Extent]]:
    """A cluster, split where holes keep its tensors apart; groups of one are left out."""
    if len(cluster) > MAX_PAIRS_OF or all(extent.dense for extent in cluster):
        yield cluster
        return
    group_of = {extent.number: [extent] for extent in cluster}
    for one, other in combinations(cluster, 2):
        mine, theirs = group_of[one.number], group_of[other.number]
        if mine is not theirs and not _apart(one, other):
            mine += theirs
            group_of.update({extent.number: mine for extent in theirs})
    yield from {id(g): g for g in group_of.values() if len(g) > 1}.values()


def _apart(one: Extent, other: Extent) -> bool:
    """Whether two tensors provably share no byte.

    Each consists of runs of bytes at multiples of its strides, so modulo the greatest divisor of
    all strides each is one run. That tells columns of a matrix apart, and every other element.
    """
    if one.end <= other.begin or other.end <= one.begin:
        return True
    my_run, my_steps = _runs(one.tensor)
    their_run, their_steps = _runs(other.tensor)
    period = math.gcd(*my_steps, *their_steps)
    distance = (other.begin - one.begin) % period if period else 0
    return my_run <= distance and distance + their_run <= period


def _runs(tensor: Tensor) -> tuple[int, list[int]]:
    """The bytes that a tensor has in one piece, and the distances between such pieces."""
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
