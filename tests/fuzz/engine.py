"""One target under the fuzzer (atheris, which brings libFuzzer), in a process of its own.

Started by tests/fuzz/run.py, which reads what this says. Everything after the target's name is
libFuzzer's.
"""

import importlib
import sys
import time
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

LANDMARKS = 8192
"""Far more than there are words for, so that two hardly ever share one."""
BEAT_S = 2.0
FORM_KEPT = 0.6
"""How often an input's form is kept; otherwise libFuzzer turns bytes as it likes."""


def landmarks(atheris: Any) -> list[Callable[[], None]]:
    """Places in code that a target's words are mapped to.

    Much of what matters is no branch of Python: rows of a table, types that msgspec compares in C.
    """
    space: dict[str, Any] = {}
    exec("\n".join(f"def place_{i}(): pass" for i in range(LANDMARKS)), space)
    return [atheris.instrument_func(space[f"place_{i}"]) for i in range(LANDMARKS)]


def main() -> None:
    """Fuzz until libFuzzer is told to stop or finds something; does not return."""
    name, *rest = sys.argv[1:]
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["netloader"]):
        from tests.fuzz.mutate import CHANGES
        from tests.fuzz.targets import TARGETS
    target, change, places = TARGETS[name], CHANGES[name], landmarks(atheris)
    runs, beat = 0, time.monotonic()

    def counted(data: bytes) -> None:
        nonlocal runs, beat
        runs += 1
        try:
            reached = target(data)
        except BaseException:
            sys.stderr.write(f"runs: {runs}\n")
            raise
        for word in reached:
            places[zlib.crc32(word.encode()) % LANDMARKS]()
        if not runs % 256 and time.monotonic() > beat + BEAT_S:
            beat = time.monotonic()
            sys.stderr.write(f"runs: {runs}\n")

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < FORM_KEPT:
            changed = change(data, random)
            if changed != data and len(changed) <= most:
                return changed
        turned: bytes = atheris.Mutate(data, most)
        return turned

    atheris.Setup([sys.argv[0], *rest], counted, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
