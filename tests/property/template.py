"""A process that has the slow imports done, and forks one that runs pytest for every order.

torch, vLLM, Hypothesis and pytest take some seconds to import; with a hundred mutants that is most
of their time. netloader is not imported here: each run imports the copy in its folder. Run as
`python template.py`. An order is one line, the folder and the arguments of pytest as JSON; its
answer is one line, the length of what pytest said, and then that.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

SLOW = (
    "torch",
    "hypothesis.stateful",
    "pytest",
    "transitions",
    "structlog",
    "msgspec",
    "blake3",
    "vllm.model_executor.model_loader",
)


class Template:
    """The process, seen from where orders are given; for one thread at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "HYPOTHESIS_PROFILE": "quick"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def pytest(self, folder: Path, arguments: Sequence[str]) -> str:
        """Run pytest in a folder, and give what it printed."""
        orders, answers = self._process.stdin, self._process.stdout
        assert orders is not None
        assert answers is not None
        orders.write(json.dumps([str(folder), *arguments]).encode() + b"\n")
        orders.flush()
        return answers.read(int(answers.readline())).decode()


def main(orders: BinaryIO, answers: BinaryIO) -> None:
    """Carry out orders until there are no more."""
    for name in SLOW:
        with contextlib.suppress(ImportError):  # not every environment has vLLM
            importlib.import_module(name)
    assert "netloader" not in sys.modules
    for order in orders:
        with tempfile.TemporaryFile() as said:
            child = os.fork()
            if not child:
                _run(json.loads(order), said)
            os.waitpid(child, 0)
            length = said.seek(0, os.SEEK_END)
            said.seek(0)
            answers.write(b"%d\n" % length + said.read())
        answers.flush()


# Hypothesis is a plugin of pytest, which would have rewritten its assertions.
QUIETLY = ("-W", "ignore::pytest.PytestAssertRewriteWarning")


def _run(order: list[str], said: Any) -> None:
    folder, *arguments = order
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = folder
    sys.path.insert(0, folder)
    try:
        importlib.import_module("pytest").main([*arguments, *QUIETLY])
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
