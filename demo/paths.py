"""Where the demo keeps its files: all under `.cache/demo/` of the checkout, which git ignores."""

from pathlib import Path
from typing import Final

MODEL_NAME: Final = "SmolLM2-135M-Instruct"

CHECKOUT: Final = Path(__file__).resolve().parent.parent
CACHE: Final = CHECKOUT / ".cache"
ROOT: Final = CACHE / "demo"

MODEL: Final = ROOT / MODEL_NAME
"""The whole model: weights, configuration, tokenizer."""

BARE_MODEL: Final = ROOT / f"{MODEL_NAME}-without-weights"
"""The same without any weight file: all that a netloader client needs on its own disk."""

WEIGHT_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz")
"""What a file of weights may end in, for any loader that vLLM has."""

RUN: Final = ROOT / "run"
"""Logs and endpoint files of the last run; emptied when the next one begins."""


def weight_files(folder: Path) -> list[Path]:
    """The files in `folder` that hold weights, or point to some (an index of shards)."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in WEIGHT_SUFFIXES or path.name.endswith(".index.json")
    )


def shown(path: Path) -> str:
    """`path` as a person types it from the checkout."""
    return str(path.relative_to(CHECKOUT)) if path.is_relative_to(CHECKOUT) else str(path)
