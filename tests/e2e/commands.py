"""The command `netloader`, in processes of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMAND = (sys.executable, "-m", "netloader")
LONG_S = 120.0


def netloader(*words: str) -> str:
    """Run a command to its good end; what it wrote."""
    ran = subprocess.run(
        [*COMMAND, *words], check=True, timeout=LONG_S, stdout=subprocess.PIPE, text=True
    )
    return ran.stdout


@contextmanager
def folder_served(folder: Path, *words: str) -> Iterator[str]:
    """`netloader serve` of a folder; where it listens."""
    command = [*COMMAND, "serve", str(folder), "--json", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["endpoint"]
    finally:
        process.terminate()
        process.communicate(timeout=LONG_S)
