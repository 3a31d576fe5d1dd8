"""What a checkpoint on disk is known by. Law: a few small reads, the same ones on every host.

The headers of its files (names, dtypes, shapes) are the same in every revision of a model, so some
bytes are looked at. Another training run changes bytes everywhere, and a few places show it;
somebody who edits a model may change one small tensor, so the first bytes of tensors are looked at
as well: of every one, in checkpoints of up to TENSOR_SAMPLES of them.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

FILE_SAMPLES, FILE_SAMPLE_BYTES = 16, 4096
"""Of each file, spread evenly."""
TENSOR_SAMPLES, TENSOR_SAMPLE_BYTES = 4096, 256
"""Of a checkpoint, and how much of each: on network storage a read costs a millisecond."""
MAX_HEADER_BYTES = 1 << 27


def fingerprint(folder: Path) -> str:
    """SHA-256 (first 16 hex digits) over the safetensors files of a folder; '' without any.

    Headers count whole, contents by sample. Format: https://github.com/huggingface/safetensors.
    """
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        with file.open("rb", buffering=0) as stream:
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
