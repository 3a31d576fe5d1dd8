"""The suite is itself tested: the layer that is said to catch a seeded bug does."""

import contextlib
import os
import queue
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.property.layers import LAYERS
from tests.property.mutants import MUTANTS, planted_in
from tests.property.template import Template

pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="module")
def killers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the layer of each mutant found, as many mutants at a time as there are cores."""
    found: dict[str, str] = {}
    left = queue.SimpleQueue[str]()
    for name in MUTANTS:
        left.put(name)

    def work() -> None:
        with Template() as template, contextlib.suppress(queue.Empty):
            while True:
                name = left.get_nowait()
                folder = tmp_path_factory.mktemp("mutant")
                found[name] = planted_in(folder, name, template, MUTANTS[name].layer)

    with ThreadPoolExecutor() as pool:
        for worker in [pool.submit(work) for _ in range(os.cpu_count() or 1)]:
            worker.result()
    return found


@pytest.mark.parametrize("name", MUTANTS)
def test_a_seeded_bug_is_caught(name: str, killers: dict[str, str], figures: list[str]) -> None:
    figures.append(f"mutant: {name} <- {killers[name]}")
    assert killers[name]


def test_every_layer_earns_its_keep(killers: dict[str, str], figures: list[str]) -> None:
    by_layer = Counter(mutant.layer for name, mutant in MUTANTS.items() if killers[name])
    figures.append("mutants caught: " + ", ".join(f"{n} by {x}" for x, n in by_layer.items()))
    assert set(by_layer) == set(LAYERS)
