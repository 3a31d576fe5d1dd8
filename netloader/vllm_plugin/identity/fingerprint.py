"""Fingerprints of the weight files on disk, from a few small reads that are the same on every host.

The headers of its files (names, dtypes, shapes) are the same in every revision of a model, so some
bytes are read as well. Another training run changes bytes everywhere, and a few places show it; an
edit of a model may change one small tensor, so the first bytes of tensors are read too: of every
one, in checkpoints of up to TENSOR_SAMPLES of them.

Each format and each sub-folder has a fingerprint of its own, so that two folders are compared in
what both of them have.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from netloader.files.folder import subfolders

FILE_SAMPLES, FILE_SAMPLE_BYTES = 16, 4096
"""Of each file, spread evenly."""
TENSOR_SAMPLES, TENSOR_SAMPLE_BYTES = 4096, 256
"""Of a checkpoint, and how much of each: on network storage a read costs a millisecond."""
MAX_HEADER_BYTES = 1 << 27

SAFETENSORS = "safetensors"
FORMATS = {
    SAFETENSORS: ("*.safetensors",),
    "bin": ("*.bin",),
    "pt": ("*.pt", "*.pth"),
    "gguf": ("*.gguf",),
}
"""The formats of weights that vLLM reads, and their files."""
LEFTOVERS = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*")
"""What training leaves behind beside weights."""


def fingerprint(folder: Path) -> str:
    """SHA-256 (first 16 hex digits) over the safetensors files of a folder; '' without all of them.

    Headers count whole, contents by sample. Format: https://github.com/huggingface/safetensors.
    """
    return _sampled(_files(folder, SAFETENSORS)) if folder.is_dir() else ""


def fingerprints(path: Path) -> dict[str, str]:
    """The fingerprint of every format and sub-folder: `checkpoint`, `checkpoint_bin.2_Dense`.

    `path` is a model's folder, or the one file of a GGUF model.
    """
    if path.is_file():
        return {"checkpoint_gguf": _sampled([path])} if path.suffix == ".gguf" else {}
    if not path.is_dir():
        return {}
    found = {}
    for name, folder in [("", path), *((f".{sub.name}", sub) for sub in subfolders(path))]:
        for form in FORMATS:
            if sample := _sampled(_files(folder, form)):
                field = "checkpoint" if form == SAFETENSORS else f"checkpoint_{form}"
                found[field + name] = sample
    return found


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights."""
    return any(_matches(name, patterns) for patterns in FORMATS.values())


def sample_of(file: Path) -> str:
    """The fingerprint of one file."""
    return _sampled([file])


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _files(folder: Path, form: str) -> list[Path]:
    """The weight files of one format that vLLM would read; none when an index names a missing one.

    As in vLLM an index says which files count. A folder that holds some of them is a download that
    has not ended, or a client's, and its fingerprint would say nothing.
    """
    found = [f for p in FORMATS[form] for f in folder.glob(p) if not _matches(f.name, LEFTOVERS)]
    if form == SAFETENSORS:
        sharded = [f for f in found if not f.name.startswith("consolidated")]
        found = sharded or found
    if named := _indexed(folder, form):
        found = named if all(file.is_file() for file in named) else []
    return sorted(found)


def _indexed(folder: Path, form: str) -> list[Path]:
    stem = {SAFETENSORS: "model.safetensors", "bin": "pytorch_model.bin"}.get(form)
    index = folder / f"{stem}.index.json"
    if stem is None or not index.is_file():
        return []
    try:
        names = json.loads(index.read_text())["weight_map"].values()
        return [folder / str(name) for name in {*names}]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []  # the loader will say so


def _sampled(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        with file.open("rb", buffering=0) as stream:
            length, header = 0, b""
            if file.suffix == ".safetensors":
                length = int.from_bytes(stream.read(8), "little")
                header = _exactly(stream, min(length, MAX_HEADER_BYTES))
                digest.update(header)
            for part in range(FILE_SAMPLES):
                stream.seek(size * part // FILE_SAMPLES)
                digest.update(_exactly(stream, FILE_SAMPLE_BYTES))
            for start, nbytes in _tensors(header, TENSOR_SAMPLES // len(files)):
                stream.seek(8 + length + start)
                digest.update(_exactly(stream, min(nbytes, TENSOR_SAMPLE_BYTES)))
    return digest.hexdigest()[:16] if files else ""


def _tensors(header: bytes, most: int) -> Iterator[tuple[int, int]]:
    """Where tensors begin and how long they are: all of them, or `most`, spread evenly."""
    try:
        entries = json.loads(header)
        spans = sorted(
            (int(begin), int(end))
            for name, entry in entries.items()
            if name != "__metadata__"
            for begin, end in [entry["data_offsets"]]
            if int(begin) >= 0
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # no safetensors file: the loader will say so
    step = -(-len(spans) // max(most, 1))
    for begin, end in spans[:: max(step, 1)]:
        yield begin, end - begin


def _exactly(stream: BinaryIO, count: int) -> bytes:
    """So many bytes, or all there are: an unbuffered read may give fewer."""
    parts: list[bytes] = []
    while count > 0 and (part := stream.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
