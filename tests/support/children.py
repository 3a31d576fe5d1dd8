"""Programs of a few lines, run in a process of their own."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def process(code: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A Python process that is gone at the end."""
    child = subprocess.Popen(
        [sys.executable, "-c", cleandoc(code), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()
