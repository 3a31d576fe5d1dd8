"""A simulated world for two machines: virtual time, two byte pipes, a fabric.

For tests of whoever embeds the machines. The links, sessions, frames and log lines in it are the
real ones; simulated are the clock, the connection and the transport. There is no thread, no sleep
and no chance in it, so whatever a test chooses happens again the same way:

    world = World(wish, offering)
    while choices := world.choices():       # all that can happen next without a fault
        world.do(choices[0])                # deliver some bytes, finish some work
    assert world.client_session.state is State.DONE

After every call the laws of docs/testing.md are checked; a broken one raises LawError.
"""

from netloader.testing.fabric import Holding
from netloader.testing.laws import LawError, lawful
from netloader.testing.world import Choice, End, World

__all__ = ["Choice", "End", "Holding", "LawError", "World", "lawful"]
