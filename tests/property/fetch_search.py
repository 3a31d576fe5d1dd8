"""Exhaustive search of a fetch: every order of events, breadth first."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

from netloader.errors import LocalProtocolError
from netloader.testing.laws import must
from tests.property.fetch_world import Choice, World


@dataclass
class Found:
    """What a search has seen."""

    nodes: int = 0
    edges: int = 0
    rows: set[int] = field(default_factory=set)
    ends: set[str] = field(default_factory=set)
    seconds: float = 0.0


class Node(NamedTuple):
    world: World
    faults: int
    path: tuple[Choice, ...]


def search(start: World, faults: int) -> Found:
    """Every order of events with at most so many faults.

    Raises AssertionError with the path in a note.
    """
    found, begun = Found(), perf_counter()
    found.rows |= {id(row) for row in start.rows}
    numbers = {(faults, start.key): 0}
    graph: list[list[int]] = []
    edge = deque([Node(start, faults, ())])
    while edge:
        at = edge.popleft()
        found.nodes += 1
        graph.append([])
        trail = at.path
        try:
            at.world.holds()
            choices = list(at.world.choices())
            if all(choice.fault for choice in choices):
                must(at.world.finish is not None, "no-dead-end", "it waits for nothing")
                assert at.world.finish is not None
                found.ends.add(at.world.finish.state.name)
            for choice in choices:
                if choice.fault and not at.faults:
                    continue
                reached = at.world.fork()
                path = trail = (*at.path, choice)
                reached.do(choice)
                found.edges += 1
                found.rows |= {id(row) for row in reached.rows}
                key = (at.faults - choice.fault, reached.key)
                if key not in numbers:
                    numbers[key] = len(numbers)
                    edge.append(Node(reached, key[0], path))
                graph[-1].append(numbers[key])
        except (AssertionError, LocalProtocolError, KeyError) as error:
            error.add_note("\n".join(f"{c.source} {c.what} {c.segment}" for c in trail))
            raise
    acyclic(graph)
    found.seconds = perf_counter() - begun
    return found


def acyclic(graph: Sequence[Sequence[int]]) -> None:
    """terminates: no order of events leads back, so every one leads to the end."""
    indegree = [0] * len(graph)
    for targets in graph:
        for target in targets:
            indegree[target] += 1
    ready = [i for i, n in enumerate(indegree) if not n]
    seen = 0
    while ready:
        seen += 1
        for target in graph[ready.pop()]:
            indegree[target] -= 1
            if not indegree[target]:
                ready.append(target)
    must(seen == len(graph), "terminates", f"{len(graph) - seen} nodes lie on a cycle")
