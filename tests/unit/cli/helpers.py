"""The real command, as a subprocess."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from netloader.cli.app import app

ROOT = Path(__file__).parents[3]
LONG_S = 120.0
"""A busy machine takes seconds to import torch."""
SOON_S = 30.0
"""A command inside this process has imported all before."""
COMMAND = (sys.executable, "-m", "netloader")


@dataclass(frozen=True)
class Ran:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        """The only JSON object that it wrote."""
        (line,) = self.out.splitlines()
        data: dict[str, Any] = json.loads(line)
        return data


def environment(**more: str) -> dict[str, str]:
    """That of a command."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb", **more}


def inside(*words: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Ran:
    """Run a command to its end in this process, which is far quicker."""
    done = CliRunner().invoke(app, list(words), input=stdin, env=dict(env or {}))
    return Ran(done.exit_code, done.stdout, done.stderr)


def not_served(*words: str) -> Ran:
    """Run a `netloader serve` that is to refuse, in this process.

    One that serves instead is interrupted after SOON_S: else a test that finds a bug takes minutes.
    """
    timer = threading.Timer(SOON_S, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        return inside("serve", *words)
    finally:
        timer.cancel()


def netloader(*words: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Ran:
    """Run a command to its end."""
    done = subprocess.run(
        [*COMMAND, *words],
        env=environment(**(env or {})),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
