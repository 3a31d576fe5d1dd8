"""The suite is itself tested: the layer that is said to catch a seeded bug does."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.property.layers import LAYERS
from tests.property.mutants import MUTANTS, planted_in

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def killers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the layer of each mutant found, two mutants at a time."""
    folders = [tmp_path_factory.mktemp("mutant") for _ in MUTANTS]
    layers = [mutant.layer for mutant in MUTANTS.values()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(MUTANTS, pool.map(planted_in, folders, MUTANTS, layers), strict=True))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_seeded_bug_is_caught(name: str, killers: dict[str, str], figures: list[str]) -> None:
    figures.append(f"mutant: {name} <- {killers[name]}")
    assert killers[name]


def test_every_layer_earns_its_keep(killers: dict[str, str], figures: list[str]) -> None:
    by_layer = Counter(mutant.layer for name, mutant in MUTANTS.items() if killers[name])
    figures.append("mutants caught: " + ", ".join(f"{n} by {x}" for x, n in by_layer.items()))
    assert set(by_layer) == set(LAYERS)
