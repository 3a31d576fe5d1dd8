"""The suite is itself tested: the layer that is said to catch a seeded bug does."""

import os
import queue
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.property.layers import LAYERS
from tests.property.mutants import MUTANTS, planted_in
from tests.property.template import Template

pytestmark = pytest.mark.timeout(2400)
Killers = dict[str, Future[tuple[str, str]]]


@pytest.fixture(scope="module")
def killers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killers]:
    """What the layer of each mutant finds, as many mutants at a time as there are cores."""
    cores = os.cpu_count() or 1
    templates = queue.SimpleQueue[Template]()
    # Not by the factory: it serves one thread at a time, and makes its folder at its first call.
    folders = tmp_path_factory.mktemp("mutants")

    def run(name: str) -> tuple[str, str]:
        template = templates.get()
        try:
            folder = Path(tempfile.mkdtemp(dir=folders))
            return planted_in(folder, name, template, MUTANTS[name].layer)
        finally:
            templates.put(template)

    with ExitStack() as stack:
        for _ in range(cores):
            templates.put(stack.enter_context(Template()))
        pool = stack.enter_context(ThreadPoolExecutor(cores))
        yield {name: pool.submit(run, name) for name in MUTANTS}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_seeded_bug_is_caught(name: str, killers: Killers, figures: list[str]) -> None:
    _, test = killers[name].result()
    figures.append(f"mutant: {name} <- {test}")
    assert test


def test_every_layer_earns_its_keep(killers: Killers, figures: list[str]) -> None:
    by_layer = Counter(layer for layer, _ in (found.result() for found in killers.values()))
    figures.append("mutants caught: " + ", ".join(f"{n} by {x}" for x, n in by_layer.items()))
    assert set(by_layer) == set(LAYERS)
