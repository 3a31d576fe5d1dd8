"""What a rank on standby answers to the process that has the instance's clients."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypedDict

from netloader.errors import NetloaderError


class StandbyError(NetloaderError):
    """An instance on standby cannot be filled in place, was not, or has no weights yet."""


class _Rank(TypedDict):
    rank: int
    filled: bool


class Report(_Rank, total=False):
    """What a rank holds, and how its last fill went: plain values, which vLLM's calls carry."""

    why: str
    """Why it was not filled."""
    bytes: int
    receive_s: float
    """Seconds until all ranks had received and verified their weights."""
    write_s: float
    """Seconds in which vLLM's reload made of them what its kernels use."""
    offer_s: float
    """Seconds until they were offered to others."""


class Standing(Protocol):
    """A rank that waits for its weights, or has waited for them."""

    def status(self) -> Report:
        """Whether it holds weights."""

    def finds_sources(self) -> bool:
        """Whether a source that is looked up, or a folder of this host, is there now."""

    def fill(self, reload: Callable[..., Any], sources: Sequence[str]) -> Report:
        """Be filled by vLLM's `reload`; never raises for a source that fails."""
