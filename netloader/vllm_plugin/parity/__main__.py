"""The command: one case, one row, exit code 0 when both engines are identical."""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from netloader.vllm_plugin.parity.engine import ARGUMENTS, Engine, EngineError, own_process
from netloader.vllm_plugin.parity.rows import table
from netloader.vllm_plugin.parity.run import Case, examine

PATIENCE_S = 3600.0
"""A large model on a slow disk takes long to load; an engine that dies is heard of at once."""


def main(arguments: Sequence[str]) -> int:
    """Compare, print the row and the differences; 0 when both engines are identical."""
    asked = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="netloader-parity-") as scratch:
        folder = Path(scratch)
        try:
            row = examine(_case(asked), partial(_start, folder, itertools.count()), folder)
        except EngineError as error:
            print(f"the engine that loads from disk did not start: {error}", file=sys.stderr)
            return 1
    print(table([row]))
    print(*row.differences, sep="\n")
    return 0 if row.verdict == "identical" else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m netloader.vllm_plugin.parity",
        description="Load a model from disk and through netloader, and compare the two engines.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder, or an id of a hub")
    parser.add_argument("--dtype")
    parser.add_argument("--quantization")
    parser.add_argument("--tensor-parallel-size", type=int, metavar="N")
    parser.add_argument("--speculative-config", type=json.loads, metavar="JSON")
    parser.add_argument(
        "--load-only", dest="tokens", action="store_const", const=0, default=8,
        help="compare what the engines hold, and generate nothing",
    )  # fmt: skip
    parser.add_argument(
        "--extra", type=json.loads, default={}, metavar="JSON",
        help="model_loader_extra_config of both engines, without sources",
    )  # fmt: skip
    return parser


def _case(asked: argparse.Namespace) -> Case:
    names = ("dtype", "quantization", "tensor_parallel_size", "speculative_config")
    given = {name: getattr(asked, name) for name in names}
    options = {name: value for name, value in given.items() if value is not None}
    return Case(asked.model, _folder(asked.model), options, asked.extra, asked.tokens)


def _folder(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model))
    except (OSError, ValueError) as error:  # its errors are these, with a page of stack
        sys.exit(f"MODEL {model!r} is no folder here, and no hub has it: {error}")


def _start(
    folder: Path,
    count: "itertools.count[int]",
    model: Path,
    extra: Mapping[str, Any],
    options: Mapping[str, Any],
) -> AbstractContextManager[Engine]:
    arguments = {**ARGUMENTS, "model": str(model), "model_loader_extra_config": extra, **options}
    return own_process(arguments, folder / f"engine-{next(count)}.log", PATIENCE_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
