"""A simulated world for two machines: virtual time, two byte pipes, a fabric.

For tests of programs that embed the machines. The sessions, connections and frames in it are the
real ones, and so is the driver: netloader's own, or `World(..., drive=YourDriver)`. Simulated are
the clock, the socket and the transport. There is no thread, no sleep and no chance in it, so
whatever a test chooses happens again the same way:

    world = World(spec, entry)
    while choices := world.choices():       # all that can happen next without a fault
        world.do(choices[0])                # deliver some bytes, finish some work
    assert world.client_session.state is State.DONE

After every call the laws of docs/contribute/testing.md are checked; a broken one raises LawError.

`check_transport` is about transports, real ones: it loads torch when it is first used.
"""

import importlib

from netloader.testing.fabric import Holding
from netloader.testing.laws import LawError, lawful
from netloader.testing.world import Choice, Driver, End, World

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netloader.testing.conformance import TransportCheckError, check_transport

__all__ = [
    "Choice",
    "Driver",
    "End",
    "Holding",
    "LawError",
    "TransportCheckError",
    "World",
    "check_transport",
    "lawful",
]

if not TYPE_CHECKING:  # with it, type checkers would accept any name

    def __getattr__(name: str) -> object:
        """Load what needs torch when it is first used (PEP 562)."""
        if name in ("TransportCheckError", "check_transport"):
            return getattr(importlib.import_module("netloader.testing.conformance"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
