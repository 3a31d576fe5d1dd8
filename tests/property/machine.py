"""A conversation in the simulated world as a Hypothesis state machine: the part without faults.

Many small rules, each with a precondition, so that no step of a run is wasted. An honest scheduler
goes ahead first: deep states are starting points, not accidents.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar

from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from netloader.fsm.messages import Purpose
from netloader.fsm.states import LIVING, State
from netloader.log import capture
from netloader.testing import Choice, World
from tests.property.strategies import chunks


class Depth(NamedTuple):
    """How far a conversation has come before the machine takes over."""

    state: State
    steps: int


DEEP = (State.VALIDATE, State.TRANSFER, State.TRANSFER)
depths = st.builds(Depth, st.sampled_from((*LIVING, *DEEP)), st.integers(0, 4))
"""The client has come to this state, and so many steps further."""

F = TypeVar("F", bound=Callable[..., Any])
orders = st.lists(st.integers(0, 5), min_size=1, max_size=8)


def can(choice: Choice) -> Callable[[F], F]:
    """A precondition: this may happen now."""
    return precondition(lambda machine: choice in machine.world.choices())


class Conversation(RuleBasedStateMachine):
    """One client, one server, and whatever may happen without a fault."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self.lines: list[dict[str, Any]] = self._stack.enter_context(capture())

    def enter(self, world: World, depth: Depth) -> None:
        """Make this the world, and go ahead in it."""
        self.world = world
        while world.client_session.state is not depth.state and world.choices():
            world.run(order=(0, 1, 2), most=1)
        world.run(order=(0, 1, 2), most=depth.steps)

    @can(Choice("client", "connects"))
    @rule()
    def the_client_connects(self) -> None:
        self.world.do(Choice("client", "connects"))

    @can(Choice("server", "connects"))
    @rule()
    def the_server_accepts(self) -> None:
        self.world.do(Choice("server", "connects"))

    @can(Choice("client", "hears"))
    @rule(nbytes=chunks)
    def the_client_hears(self, nbytes: int) -> None:
        self.world.do(Choice("client", "hears"), nbytes)

    @can(Choice("server", "hears"))
    @rule(nbytes=chunks)
    def the_server_hears(self, nbytes: int) -> None:
        self.world.do(Choice("server", "hears"), nbytes)

    @can(Choice("client", "writes"))
    @rule()
    def the_client_writes_on(self) -> None:
        self.world.do(Choice("client", "writes"))

    @can(Choice("server", "writes"))
    @rule()
    def the_server_writes_on(self) -> None:
        self.world.do(Choice("server", "writes"))

    @can(Choice("client", "works"))
    @rule()
    def the_client_works(self) -> None:
        self.world.do(Choice("client", "works"))

    @can(Choice("server", "works"))
    @rule()
    def the_server_works(self) -> None:
        self.world.do(Choice("server", "works"))

    @rule(seconds=st.floats(0.0, 0.01))
    def a_moment_passes(self, seconds: float) -> None:
        self.world.wait(seconds)

    @invariant()
    def the_laws_hold(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.finish()
                self.check_the_log()
                states = (self.world.client_session.state, self.world.server_session.state)
                event(f"ended {states[0].name}/{states[1].name}")
        finally:
            self._stack.close()

    def finish(self) -> None:
        """Bring the conversation to its end and say what must be true there."""
        raise NotImplementedError

    def check_the_log(self) -> None:
        """never-silent, same-words: what was opened is closed, once, with the verdict."""
        for end in self.world.ends:
            mine = [x for x in self.lines if x.get("netloader.side") == end.side]
            opened = [x for x in mine if x["event"] == "netloader.session.opened"]
            closed = [x for x in mine if x["event"] == "netloader.session.closed"]
            assert len(closed) == len(opened), f"never-silent: {end.side} {opened} {closed}"
            if closed and end.session.verdict is not None:
                assert closed[-1]["netloader.reason"] == end.session.verdict.reason.value

    def done(self) -> bool:
        """Whether both sides are done."""
        sessions = (self.world.client_session, self.world.server_session)
        return all(session.state is State.DONE for session in sessions)

    @property
    def curious(self) -> bool:
        """Whether the client only wants to know."""
        return self.world.client_session.spec.purpose is Purpose.DESCRIBE
