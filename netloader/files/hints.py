"""Hints: what an engine found out at its start that is data, as a few files of JSON.

They are one more published model of a server, of the role `hints`. The client decides what
each is for, and where it goes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from netloader.config import Endpoint, shown
from netloader.files.fetching import receive
from netloader.files.fingerprint import check, of_vllm
from netloader.files.folder import published, store_of
from netloader.files.placing import place
from netloader.files.rules import MIB, FilesError, Rules
from netloader.fsm.identity import ROLE, Identity, Role
from netloader.io.options import ClientOptions
from netloader.io.published import PublishedModel
from netloader.io.publishing import ServerOptions

HINTS: Final = Rules(frozenset({".json"}), 2, 64, MIB // 16, MIB)
"""A few kilobytes that vLLM, or its plugin, reads."""
INSPECTIONS: Final = "modelinfos"
"""The folder of the cache root where vLLM keeps what it found in the class of a model."""
KV_SIZE: Final = "kv_cache.json"


def vllm_root(environment: Mapping[str, str]) -> Path:
    """Where vLLM keeps its caches: VLLM_CACHE_ROOT, else `vllm` in XDG_CACHE_HOME or ~/.cache."""
    common = environment.get("XDG_CACHE_HOME", "~/.cache")
    return Path(environment.get("VLLM_CACHE_ROOT", f"{common}/vllm")).expanduser()


@dataclass(frozen=True, slots=True)
class KvSize:
    """The bytes that an engine measured for its KV cache, and under which conditions."""

    nbytes: int
    free_bytes: int
    """Of the device, before the engine took any."""
    taken_bytes: int
    """Of the device, until it was measured: weights, and all that a load keeps beside them."""
    of: Mapping[str, str]
    """What must be the same where it is used."""

    def render(self) -> bytes:
        """As JSON."""
        memory = {"free_bytes": self.free_bytes, "taken_bytes": self.taken_bytes}
        told = {"kv_cache_bytes": self.nbytes, **memory, "of": dict(self.of)}
        return json.dumps(told, sort_keys=True).encode()


def hints_identity(model: str) -> Identity:
    """What hints are for: a model, and a version of vLLM."""
    return Identity({ROLE: Role.HINTS.value, "model": model, **of_vllm()})


def publish_hints(
    contents: Mapping[str, bytes], model: str, options: ServerOptions
) -> PublishedModel:
    """Offer hints, for `Server.offer`."""
    return published(store_of(contents), hints_identity(model), options)


def take_hints(
    sources: Sequence[Endpoint], model: str, options: ClientOptions
) -> Mapping[str, bytes]:
    """The hints of the first source that has some; nothing is written.

    Raises:
        FilesError: none has any, or they are not taken; the message says why.
    """
    mine = hints_identity(model)
    got = receive(sources, Role.HINTS, options, HINTS, partial(check, mine))
    for name, content in got.contents.items():
        _object(name, content)
    return got.contents


def place_inspections(hints: Mapping[str, bytes], root: Path) -> tuple[str, ...]:
    """Put what vLLM found in the class of the model below its cache root, as `place`."""
    return place({n: c for n, c in hints.items() if n.startswith(f"{INSPECTIONS}/")}, root)


def kv_size_in(hints: Mapping[str, bytes]) -> KvSize | None:
    """The size of the KV cache among hints, if it is there.

    Raises:
        FilesError: it is no such size.
    """
    if KV_SIZE not in hints:
        return None
    told = _object(KV_SIZE, hints[KV_SIZE])
    match told:
        case {
            "kv_cache_bytes": int(nbytes),
            "free_bytes": int(free),
            "taken_bytes": int(taken),
            "of": dict(of),
        }:
            texts = all(isinstance(value, str) for value in of.values())
            if nbytes > 0 <= min(free, taken) and texts:
                return KvSize(nbytes, free, taken, of)
    raise FilesError(f"the file {KV_SIZE} of the source names no size and its conditions")


def _object(name: str, content: bytes) -> dict[str, Any]:
    try:
        told = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FilesError(f"the file {shown(name)} of the source is no JSON: {error}") from error
    if not isinstance(told, dict):
        raise FilesError(f"the file {shown(name)} of the source is no JSON object")
    return told
