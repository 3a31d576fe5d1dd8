"""Mistakes planted in a copy of the project, to see what catches them."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def copied(folder: Path, *parts: str) -> Path:
    """A copy of some folders of the repository and its settings, free to be spoilt."""
    for part in parts:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / part, folder / part, ignore=ignored)
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    return folder


@contextmanager
def planted(copy: Path, file: str, pattern: str, mistake: str) -> Iterator[int]:
    """Put a mistake (a template for the groups) in the place of what matches, once.

    Gives the number of the line.
    """
    path = copy / file
    right = path.read_text()
    (found,) = re.finditer(pattern, right)
    path.write_text(right[: found.start()] + found.expand(mistake) + right[found.end() :])
    try:
        yield right.count("\n", 0, found.start()) + 1
    finally:
        path.write_text(right)
