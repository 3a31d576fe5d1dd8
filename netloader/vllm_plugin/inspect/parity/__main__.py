"""The command: one case, one row, exit code 0 when both engines are identical."""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from netloader.vllm_plugin.inspect.parity.engine import ARGUMENTS, Engine, EngineError, own_process
from netloader.vllm_plugin.inspect.parity.rows import legend, table
from netloader.vllm_plugin.inspect.parity.run import Case, examine

PATIENCE_S = 3600.0
"""A large model on a slow disk takes long to load; the death of an engine is noticed at once."""

AS_GIVEN = ("dtype", "quantization", "tensor_parallel_size", "speculative_config")
"""Options that are arguments of `vllm.LLM` under their own names."""


def main(arguments: Sequence[str]) -> int:
    """Compare, print the row, what was compared and what differs; 0 when both are identical."""
    asked = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="netloader-parity-") as scratch:
        folder = Path(scratch)
        logs = _made(asked.logs) if asked.logs else folder
        try:
            row = examine(_case(asked), partial(_start, logs, itertools.count()), folder)
        except EngineError as error:
            print(*_apology(asked, error), sep="\n", file=sys.stderr)
            return 1
    print(table([row]))
    print(*legend(row), *row.differences, sep="\n")
    return 0 if row.verdict == "identical" else 1


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _apology(asked: argparse.Namespace, error: EngineError) -> Iterator[str]:
    yield f"{asked.model} could not be compared: {error.reason}"
    if error.cause:
        yield f"The first error in the engine's log: {error.cause}"
    if asked.logs:
        yield f"What the engines printed is in {asked.logs}."
    else:
        yield "To keep what the engines print, give --logs DIR."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m netloader.vllm_plugin.inspect.parity",
        description="Load a model from disk and through netloader, and compare the two engines.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder, or an id of a hub")
    parser.add_argument("--dtype")
    parser.add_argument("--quantization")
    parser.add_argument("--tensor-parallel-size", type=int, metavar="N")
    parser.add_argument("--speculative-config", type=_object, metavar="JSON")
    parser.add_argument(
        "--engine", type=_object, default={}, metavar="JSON",
        help='more arguments of vllm.LLM for both engines, such as {"runner": "pooling"}',
    )  # fmt: skip
    parser.add_argument(
        "--load-only", dest="tokens", action="store_const", const=0, default=8,
        help="compare what the engines hold, and ask nothing",
    )  # fmt: skip
    parser.add_argument(
        "--extra", type=_object, default={}, metavar="JSON",
        help="model_loader_extra_config of both engines, without sources",
    )  # fmt: skip
    parser.add_argument(
        "--client-folder", type=Path, metavar="DIR",
        help="the folder a client will have; without it, a copy of MODEL without weights",
    )  # fmt: skip
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep what the engines print")
    return parser


def _object(text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ArgumentTypeError: the text is none.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object, such as {{}}")
    return found


def _case(asked: argparse.Namespace) -> Case:
    given = {name: getattr(asked, name) for name in AS_GIVEN}
    options = {name: value for name, value in given.items() if value is not None} | asked.engine
    if asked.client_folder and not asked.client_folder.is_dir():
        sys.exit(f"--client-folder {str(asked.client_folder)!r} is no folder here")
    folder = _folder(asked.model)
    return Case(asked.model, folder, options, asked.extra, asked.tokens, asked.client_folder)


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
