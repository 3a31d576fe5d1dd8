"""The same work on several threads that begin together."""

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def at_once(work: Callable[[], Result], threads: int = 4) -> list[Result]:
    """What each thread returned; fewer if one raised."""
    found: list[Result] = []
    together = threading.Barrier(threads)

    def one() -> None:
        together.wait(10)
        found.append(work())

    every = [threading.Thread(target=one) for _ in range(threads)]
    for thread in every:
        thread.start()
    for thread in every:
        thread.join(30)
    return found
