"""Whether the page cache holds a file, which decides how fast it is read."""

import os
from pathlib import Path


def warm(path: Path) -> None:
    """Read a file, so that the page cache has it."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass


def cool(path: Path) -> None:
    """Put a file out of the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
