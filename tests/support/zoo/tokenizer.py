"""A tokenizer of whole words, for models that vLLM does not start without one."""

import json
from pathlib import Path
from typing import Any

from tests.support.zoo.checkpoint import VOCABULARY

FRAME = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "yes", "no")
"""From id 4 on; the first five are those of `parity.questions.PAIR`."""

SPECIAL = {
    "<image>": 300,
    "<|vision_start|>": 301,
    "<|vision_end|>": 302,
    "<|image_pad|>": 303,
    "<|video_pad|>": 304,
    "<|startoftranscript|>": 305,
}
"""What stands for an image or a sound in a prompt."""


def write_tokenizer(folder: Path, **settings: Any) -> Path:
    """tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: n for n, word in enumerate((*FRAME, *WORDS))}
    vocabulary |= SPECIAL
    taken = set(vocabulary.values())
    vocabulary |= {f"w{n}": n for n in range(VOCABULARY) if n not in taken}
    special = {**{word: n for n, word in enumerate(FRAME)}, **SPECIAL}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    file = {
        "version": "1.0",
        "added_tokens": [
            {"id": n, "content": word, "special": True, **plain} for word, n in special.items()
        ],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), FRAME, strict=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names, **settings}
    (folder / "tokenizer.json").write_text(json.dumps(file))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
