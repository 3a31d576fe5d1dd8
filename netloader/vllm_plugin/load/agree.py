"""Let all ranks of an instance agree before a fallback that uses collectives.

An ordinary loader may use collectives of the whole instance (fastsafetensors does). A rank that
was filled from its source would not take part, and the others would hang. So the ranks tell each
other whether a source filled them before any of them calls such a loader. They do so through the
store that the host's process group has anyway; no collective is needed to avoid one.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

import torch
from torch.distributed import DistStoreError
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from netloader.errors import NetloaderError
from netloader.io.clock import monotonic
from netloader.vllm_plugin.serve.worker import this_worker

INDEPENDENT = frozenset(
    {"auto", "hf", "safetensors", "pt", "npcache", "mistral", "dummy", "sharded_state"}
)
"""vLLM's load formats that read what a rank needs without talking to the others. Any other format,
a third party's above all, may use collectives."""

SLICE_S = 1.0
"""The wait is in C++, where signals are not handled: a rank may take so long to obey one."""

FIRST_S = 10.0
"""How long the first rank may take between two calls of the store."""

RECEIVED, MISSING, GIVEN_UP = "received", "missing", "given up"


class DisagreementError(NetloaderError):
    """A rank has not said in time whether a source filled it."""


def needs_agreement(load_format: str, ranks: Sequence[int]) -> bool:
    """Whether the loader of this format may only be called by all of `ranks` together."""
    return len(ranks) > 1 and load_format.lower() not in INDEPENDENT


def all_received(
    received: bool,  # noqa: FBT001 - the fact that is told
    role: str,
    ranks: Sequence[int],
    timeout_s: float,
) -> bool:
    """Tell the other ranks whether this one was filled by a source; whether all were.

    Every rank that returns returns the same. `ranks` are `torch.distributed` global ranks.

    Raises:
        DisagreementError: a rank said nothing for `timeout_s` seconds, or has given up itself.
    """
    return all_of(received, f"{role}/{this_worker().next_agreement(role)}", ranks, timeout_s)


def all_of(
    received: bool,  # noqa: FBT001 - as above
    name: str,
    ranks: Sequence[int],
    timeout_s: float,
) -> bool:
    """As `all_received`, under a name that all ranks give to this agreement and to no other."""
    mine = torch.distributed.get_rank()
    store = _store(f"netloader/{name}")
    heard = {mine: RECEIVED if received else MISSING}
    _say(store, mine, heard[mine])
    for rank in ranks:
        if rank != mine:
            heard[rank] = _hear(store, rank, timeout_s)
        if heard[rank] == GIVEN_UP:
            _say(store, mine, GIVEN_UP)
            raise DisagreementError(
                f"rank {rank} has not said within {timeout_s:g} s whether it has its weights; "
                "its log says why. AGREE_TIMEOUT_S is how long the ranks wait for each other"
            )
    return all(answer == RECEIVED for answer in heard.values())


def first_said(what: str, mine: str) -> str:
    """The same text on every rank: what the first one said that came here.

    Where it cannot be had within FIRST_S, and without a process group, that is `mine`.
    """
    if not torch.distributed.is_initialized():
        return mine
    store = _store(f"netloader/{what}")
    with suppress(RuntimeError):  # DistStoreError, DistNetworkError
        if store.add("first", 1) == 1:
            store.set("said", mine)
        store.wait(["said"], timedelta(seconds=FIRST_S))
        return store.get("said").decode()
    return mine


def _store(prefix: str) -> Store:
    return PrefixStore(prefix, _get_default_store())


def _say(store: Store, mine: int, answer: str) -> None:
    with suppress(RuntimeError):  # the rank that hosts the store is gone: `_hear` will find out
        store.set(str(mine), answer)


def _hear(store: Store, rank: int, timeout_s: float) -> str:
    """The answer of a rank; a store that is gone counts as silence."""
    end = monotonic() + timeout_s
    while (left := end - monotonic()) > 0:
        try:
            store.wait([str(rank)], timedelta(seconds=min(left, SLICE_S)))
            return store.get(str(rank)).decode()
        except DistStoreError:  # not in this slice
            continue
        except RuntimeError:  # DistNetworkError is one
            return GIVEN_UP
    return GIVEN_UP
