"""What takes part in the comparison."""

from collections.abc import Callable
from typing import Protocol

from benchmarks.sender import Sender
from benchmarks.target import Target


class Contender(Protocol):
    """One way to bring the bytes of a workload into memory of this process."""

    name: str
    """As the report names it; each once."""
    kind: str
    """What it is compared with: `network`, `same host`, `file` or `memory`."""
    workloads: tuple[str, ...]
    """The workloads that it can move in a reasonable time."""

    def obstacle(self) -> str:
        """Why it cannot take part on this machine, in a few words, or ''."""

    def prepare(self, sender: Sender, target: Target) -> Callable[[], object]:
        """Do what is not timed; the returned function brings the bytes, and is timed."""
