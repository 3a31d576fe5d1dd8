"""The two models that are started: the demo's, and a dense one of 1.7 GiB with random weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.engines import dense_model
from demo.paths import BARE_MODEL, MODEL

WORDS: Final = 1000
"""Of the dense model's tokenizer: vLLM's server does not start without one."""


@dataclass(frozen=True, slots=True)
class Model:
    """A folder with weights, and one that lacks only these."""

    name: str
    full: Path
    bare: Path

    @property
    def nbytes(self) -> int:
        """Of the files of weights."""
        return sum(path.stat().st_size for path in self.full.glob("*.safetensors"))


def models() -> tuple[Model, ...]:
    """Both of them; the dense one is made when it is not there."""
    full, bare = dense_model()
    for folder in (full, bare):
        _tokenizer(folder)
    return Model("SmolLM2-135M", MODEL, BARE_MODEL), Model("dense, 1.7 GiB", full, bare)


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {"[UNK]": 0, **{f"word{n}": n for n in range(1, WORDS)}}
    tokenizer = Tokenizer(WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
