"""The entry point of the command `netloader`. Loads typer and rich, which are optional."""

import sys
from importlib.util import find_spec

from netloader.cli.codes import Code
from netloader.installed import mixed

NEEDED = ("typer", "rich")


def main() -> int:
    """Run the command line, and say with which status to exit."""
    if problem := mixed():
        sys.stderr.write(f"{problem}\n")
        return Code.NO
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        what = f"the command needs {' and '.join(missing)}: pip install 'vllm-netloader[cli]'"
        sys.stderr.write(f"netloader: {what}\n")
        return Code.USAGE
    from netloader.cli.app import app

    try:
        app(prog_name="netloader")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else Code.OK
    return Code.OK
