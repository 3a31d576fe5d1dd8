"""Both ends of a transport, cleared away even when a test fails in the middle."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.io.transports.ends import Ends, Join


@pytest.fixture
def join() -> Iterator[Join]:
    made: list[Ends] = []

    def make(*args: Any, **options: Any) -> Ends:
        made.append(Ends(*args, **options))
        return made[-1]

    yield make
    for ends in made:
        ends.close()
