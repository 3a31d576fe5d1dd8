"""Real engines, of which one finds what the other has compiled, and knows what it measured."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from netloader.config import Endpoint
from netloader.fsm.manifest import Manifest
from netloader.fsm.messages import Description
from netloader.io.describe import ask_status
from netloader.io.options import ClientOptions
from netloader.secure.tokens import TokenFile
from tests.e2e.engines import Engine, ForkServer
from tests.e2e.source_logs import said, serving
from tests.support import zoo
from tests.unit.io.helpers import eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

COMPILES: dict[str, Any] = {
    "enforce_eager": False,
    "worker_extension_cls": "tests.e2e.compiling.Compiling",
}

MEASURES: dict[str, Any] = {"kv_cache_memory_bytes": None, "gpu_memory_utilization": 0.04}
"""vLLM is to find out how large the KV cache can be: of 24 GiB, 1 for all that an engine has."""


def environment(root: Path) -> dict[str, str]:
    """That of an engine with caches of its own; this vLLM cannot load what it compiles ahead."""
    own = {"VLLM_CACHE_ROOT": str(root), "TORCHDYNAMO_DISABLE": "0"}
    return {**own, "VLLM_USE_AOT_COMPILE": "0"}


def libraries(root: Path) -> set[str]:
    """What the compiler has made."""
    return {path.name for end in ("so", "gch") for path in root.rglob(f"*.{end}")}


def wait_for(source: Endpoint, token: Path) -> None:
    """Until a source offers what it has compiled; it does so when it is warm."""
    options = ClientOptions(token=TokenFile(token))

    def offered() -> bool:
        return isinstance(
            ask_status(source, {"role": "caches"}, Manifest(()), options), Description
        )

    assert eventually(offered, 60)


def test_an_engine_compiles_nothing_that_its_source_has_compiled(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    full = zoo.write(tmp_path / "full", zoo.llama_config(), zoo.llama_tensors(1, torch.bfloat16))
    bare = zoo.write(tmp_path / "elsewhere" / "bare", zoo.llama_config(), None)
    token = tmp_path / "token"
    token.write_text("sixteen characters and more")
    extra = {"CACHES": True, "AUTH_TOKEN_FILE": str(token)}
    theirs, mine = tmp_path / "theirs" / "vllm", tmp_path / "mine" / "vllm"
    with serving(
        fork_server, full, tmp_path, extra=extra, environment=environment(theirs), **COMPILES
    ) as (source, at):
        expected = source.generate()
        made = libraries(theirs)
        wait_for(Endpoint.parse(at[0]), token)
        from_it = {**extra, "FALLBACK": "never", "SOURCE": at[0]}
        with fork_server.engine(bare, from_it, environment=environment(mine), **COMPILES) as client:
            tokens = client.generate()
            taken = said(client, "netloader.caches.taken", "compiled code")
    assert made
    assert taken
    assert tokens == expected
    assert libraries(mine) == made, "the compiler was not called"


@contextmanager
def less_memory(nbytes: int) -> Iterator[None]:
    """A block in which so many bytes of this host are taken."""
    taken = torch.ones(nbytes, dtype=torch.uint8)
    yield
    del taken


def test_an_engine_takes_over_the_size_that_its_source_has_measured(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    full = zoo.write(tmp_path / "full", zoo.llama_config(), zoo.llama_tensors(1, torch.bfloat16))
    bare = zoo.write(tmp_path / "elsewhere" / "bare", zoo.llama_config(), None)
    with ExitStack() as stack:
        with less_memory(5 << 29):  # so that beside its source a client has as much as that had
            served = serving(fork_server, full, tmp_path, extra={"CACHES": True}, **MEASURES)
            source, at = stack.enter_context(served)
        from_it = {"CACHES": True, "FALLBACK": "never", "SOURCE": at[0]}
        client = stack.enter_context(fork_server.engine(bare, from_it, **MEASURES))
        assert client.generate() == source.generate()
        (line,) = said(client, "netloader.caches.taken", "bytes for the KV cache")
        measured, taken = (cache_bytes(engine) for engine in (source, client))
    assert 0.97 * measured < taken < measured, line


def cache_bytes(engine: Engine) -> int:
    """What the KV cache of an engine's first rank takes."""
    return int(engine.rpc(_cache_bytes)[0])


def _cache_bytes(worker: Any) -> int:
    return sum(cache.nbytes for cache in worker.model_runner.kv_caches)
