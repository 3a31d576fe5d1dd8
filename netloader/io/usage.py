"""Whether published weights are still what their owner computes with."""

from typing import Protocol


class Usage(Protocol):
    """Tells whether published tensors are still what their owner computes with.

    Called from worker threads. Each method answers '' or one sentence that names what changed.
    """

    def quick(self) -> str:
        """Compare identity, storage, geometry and version counters: a few µs for each tensor."""

    def thorough(self) -> str:
        """Compare also what no client checks; may take seconds."""


class AlwaysInUse:
    """The usage of weights that are not watched."""

    def quick(self) -> str:
        """Find nothing changed."""
        return ""

    def thorough(self) -> str:
        """Find nothing changed."""
        return ""
