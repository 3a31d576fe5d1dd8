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
"""

from netloader.testing.fabric import Holding
from netloader.testing.laws import LawError, lawful
from netloader.testing.world import Choice, Driver, End, World

__all__ = ["Choice", "Driver", "End", "Holding", "LawError", "World", "lawful"]
