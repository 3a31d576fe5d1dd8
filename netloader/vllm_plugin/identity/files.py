"""The files of a model's folder besides its weights: those that change what the engine answers.

vLLM reads most of them in the process that makes the configuration, which the worker cannot watch:
they are known by their names (`Kind`). The files that the worker itself reads while it builds a
model are noted: their content became part of the model, and no manifest shows it.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from vllm.config import ModelConfig

from netloader.files.folder import subfolders
from netloader.fsm.digest_choice import STRONG
from netloader.io.store.digests import digest_of
from netloader.vllm_plugin.identity.fingerprint import is_weights, sample_of

MAX_FILES = 256
"""As many files of a folder are looked at, in the order of their names."""
PLAIN_JSON_BYTES = 1 << 20
"""JSON up to this size is compared by what it says; what is larger, by its bytes."""
WHOLE_BYTES = 64 << 20
"""Files up to this size are hashed whole; what is larger, by sample."""
MAX_OPENED = 10_000
"""A model that opens more files while it is built reads its whole checkpoint."""

BOOKKEEPING = ("transformers_version", "_commit_hash", "_name_or_path", "_from_model_config")
"""Top-level keys of JSON files that differ between equal folders."""


class Kind(Enum):
    """What a file of a model's folder decides."""

    RESOLVED = "compared as the settings that vLLM made of it"
    PROCESSOR = "what images, video and sound become before the model sees them"
    CODE = "code of the model"
    QUANTIZATION = "how the weights are quantized"
    TEXT = "how text becomes tokens and back, and other defaults"
    OTHER = "nothing that vLLM reads, as far as is known"


_PATTERNS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (Kind.RESOLVED, ("config.json", "params.json", "generation_config.json", "*.index.json")),
    (Kind.PROCESSOR, ("*preprocessor_config.json", "processor_config.json",
                      "*feature_extractor*.json", "*image_processor*.json")),
    (Kind.QUANTIZATION, ("quant_model_description*.json", "hf_quant_config.json",
                         "quantize_config.json", "quant_config.json")),
    (Kind.CODE, ("*.py",)),
    (Kind.OTHER, ("trainer_state.json", "*_results.json", "adapter_config.json", ".*")),
    (Kind.TEXT, ("*.json", "*.jinja", "*.tiktoken", "*.model", "*.model.v*", "vocab.*",
                 "merges.txt")),
)  # fmt: skip


def kind_of(name: str) -> Kind:
    """What a file decides, by its path inside the model's folder; the first row that fits."""
    last = name.rpartition("/")[2]
    for kind, patterns in _PATTERNS:
        if any(fnmatchcase(last, pattern) for pattern in patterns):
            return kind
    return Kind.OTHER


def folder_of(model: str, revision: str | None = None) -> Path | None:
    """Where the files of a model are on this host: its folder, or its snapshot from the hub."""
    path = Path(model)
    if path.is_dir():
        return path
    with suppress(HFValidationError, OSError, ValueError):
        found = try_to_load_from_cache(str(model), "config.json", revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def digest(file: Path) -> str:
    """What a file is known by (16 hex digits); `unreadable` when it cannot be read."""
    try:
        size = file.stat().st_size
        if size > WHOLE_BYTES:
            return sample_of(file)
        data = file.read_bytes()
    except OSError:
        return "unreadable"
    if file.suffix == ".json" and size <= PLAIN_JSON_BYTES:
        data = _said(data)
    return digest_of(STRONG, [memoryview(data)])[:16]


def _said(data: bytes) -> bytes:
    """JSON in one form, whatever its spaces and the order of its keys; other bytes as they are."""
    try:
        value = json.loads(data)
        if isinstance(value, dict):
            value = {k: v for k, v in value.items() if k not in BOOKKEEPING}
        return json.dumps(value, sort_keys=True).encode()
    except (ValueError, RecursionError):
        return data


class Files:
    """The files of one model's folder, and which of them were read while the model was built."""

    def __init__(self, folder: Path | None, kinds: frozenset[Kind] = frozenset()) -> None:
        self.folder = folder
        self._kinds = kinds
        self._read: dict[str, str] = {}

    @classmethod
    def of(cls, model_config: ModelConfig) -> "Files":
        """The files of a model; which kinds can change its numbers depends on its configuration."""
        wanted = {
            Kind.PROCESSOR: getattr(model_config, "multimodal_config", None) is not None,
            Kind.CODE: getattr(model_config, "trust_remote_code", False),
            Kind.QUANTIZATION: getattr(model_config, "quantization", None) is not None,
        }
        kinds = frozenset(kind for kind, needed in wanted.items() if needed)
        folder = folder_of(model_config.model, getattr(model_config, "revision", None))
        return cls(folder, kinds)

    @property
    def has_code(self) -> bool:
        """Whether the engine runs code of the folder."""
        return Kind.CODE in self._kinds

    @property
    def read(self) -> Mapping[str, str]:
        """The files that were read while the model was built, with their digests then."""
        return self._read

    def needed(self) -> dict[str, str]:
        """The files that can change numbers, with their digests."""
        names = [n for n in self._names() if kind_of(n) in self._kinds]
        return {**self._digests(names), **self._read}

    def text(self) -> dict[str, str]:
        """The files that change how text is handled, or the defaults of a request."""
        return self._digests([n for n in self._names() if kind_of(n) is Kind.TEXT])

    def digest(self, name: str) -> str | None:
        """The digest of a file of this folder; None when there is none of this name.

        `name` may come from a peer: a path that leads out of the folder is none of its files.
        """
        parts = name.split("/")
        if self.folder is None or len(parts) > 2 or any(p in ("", ".", "..") for p in parts):
            return None
        file = self.folder.joinpath(*parts)
        try:
            return digest(file) if file.is_file() else None
        except (OSError, ValueError):  # a name that no file system takes
            return None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what is read of the folder from here on, until `built` is called or this ends."""
        self._read = {}
        WATCH.begin(self)
        try:
            yield
        finally:
            self.built()

    def built(self) -> None:
        """The model is built: what was read belongs to it, what is read from now on does not."""
        opened = WATCH.end(self)
        if opened and self.folder is not None:
            self._read = self._digests(sorted(set(self._inside(self.folder, opened))))

    def _inside(self, folder: Path, opened: list[Any]) -> Iterator[str]:
        roots = {folder.absolute(), folder.resolve()}
        for path in opened:
            with suppress(TypeError, ValueError, OSError):
                file = Path(os.fsdecode(path)).absolute()
                names = [file.relative_to(r).as_posix() for r in roots if file.is_relative_to(r)]
                yield from filter(self._counts, names)

    def _counts(self, name: str) -> bool:
        """Whether a file that was read is seen in nothing else that is compared."""
        if "/" in name:
            return self.digest(name) is not None
        ordinary = is_weights(name) or kind_of(name) is Kind.RESOLVED
        return not ordinary and self.digest(name) is not None

    def _names(self) -> list[str]:
        if self.folder is None:
            return []
        try:
            places = [("", self.folder), *((f"{s.name}/", s) for s in subfolders(self.folder))]
            found = [p + f.name for p, place in places for f in place.iterdir() if f.is_file()]
        except OSError:
            return []
        return sorted(name for name in found if name.isprintable())[:MAX_FILES]

    def _digests(self, names: list[str]) -> dict[str, str]:
        found = {name: self.digest(name) for name in names}
        return {name: text for name, text in found.items() if text is not None}


class _Watch:
    """Notes the files that this process opens between `begin` and `end`.

    Python cannot remove an audit hook, so there is one for the life of the process, and it looks at
    one attribute when nothing is noted. torch maps a safetensors file without an event of Python's,
    so that call is replaced meanwhile.
    """

    def __init__(self) -> None:
        self._opened: dict[Files, list[Any]] = {}
        self._lock = threading.Lock()
        self._hooked = False
        self._map: Callable[..., Any] | None = None

    def begin(self, who: Files) -> None:
        with self._lock:
            if not self._hooked:
                self._hooked = True
                sys.addaudithook(self._hook)
            if self._map is None:
                self._map = torch.UntypedStorage.from_file
                torch.UntypedStorage.from_file = self._mapping  # type: ignore[method-assign]
            self._opened = {**self._opened, who: []}

    def end(self, who: Files) -> list[Any]:
        """What was opened since `begin`, once; empty after that."""
        with self._lock:
            opened = self._opened.get(who, [])
            self._opened = {w: seen for w, seen in self._opened.items() if w is not who}
            if not self._opened and self._map is not None:
                del torch.UntypedStorage.from_file
                self._map = None
            return opened

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._opened and event == "open":
            self._note(arguments[0])

    def _note(self, path: Any) -> None:
        for seen in self._opened.values():
            if len(seen) < MAX_OPENED:
                seen.append(path)

    def _mapping(self, *arguments: Any, **named: Any) -> Any:
        self._note(arguments[0] if arguments else named.get("filename"))
        mapped = self._map or torch.UntypedStorage.from_file
        return mapped(*arguments, **named)


WATCH = _Watch()
"""The one watch of this process: a hook is the process's, and stays."""
