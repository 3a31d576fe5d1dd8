"""The hostile world: whatever breaks, whatever is forged, both sides end right and in time."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from netloader.fsm.events import ConnectFailed, OfferRefused, StopRequested, TransferFailed
from netloader.fsm.identity import Identity
from netloader.fsm.reasons import Reason
from netloader.fsm.states import LIVING, TERMINAL, State
from netloader.fsm.terms import CatalogEntry, FetchSpec
from netloader.testing import World
from netloader.testing.sides import Side
from netloader.wire.connection import LINGER_S
from netloader.wire.frames import Spoken
from tests.property.machine import Conversation, Depth, F, depths
from tests.property.strategies import pairs, plausible, windows
from tests.support.messages import DEADLINES, NBYTES, OFFERING, WISH

SIDES: Final = st.sampled_from(["client", "server"])
SEGMENTS: Final = (0, 1, 2)
ANOTHER: Final = tuple(b"another checkpoint %d" % i for i in SEGMENTS)
FAILED: Final = TransferFailed(Reason.TRANSFER_FAILED, "cut")
REFUSALS: Final = (
    OfferRefused(Reason.BUSY, "full", 2.0),
    OfferRefused(Reason.NOT_READY, "hashing", 2.0),
    OfferRefused(Reason.NOT_SERVING, "asleep"),
)
LONGEST_S: Final = (
    DEADLINES.connect_s
    + 2 * DEADLINES.handshake_s
    + DEADLINES.validate_s
    + DEADLINES.transfer_s(NBYTES)
    + 2 * LINGER_S
)
"""When everybody has nothing but deadlines left, all is over after this."""

runs: list[int] = []
hurt_at: Counter[tuple[State, State]] = Counter()
"""Where the two were when a fault came: read by the test of the statistics."""


def may_hurt(also: str = "") -> Callable[[F], F]:
    """A precondition: a fault is left to be had, somebody to have it, and what it needs."""
    present: dict[str, Callable[[World], bool]] = {
        "": lambda world: True,
        "linked": lambda world: world.client.linked,
        "not linked": lambda world: not world.client.linked,
        "bytes": lambda world: any(pipe.bytes for pipe in world.pipes.values()),
        "work": lambda world: any(end.hands.able for end in world.ends),
    }

    def holds(machine: "Hostile") -> bool:
        living = not all(end.settled for end in machine.world.ends)
        return machine.budget > 0 and living and present[also](machine.world)

    return precondition(holds)


class Hostile(Conversation):
    """One or two faults a run; then the rest of the honest rules, and time."""

    @initialize(pair=pairs, window=windows, depth=depths, budget=st.integers(1, 2))
    def begin(
        self, pair: tuple[FetchSpec, CatalogEntry], window: int, depth: Depth, budget: int
    ) -> None:
        self.pair, self.window = pair, window
        self.budget, self.sources = budget, 2
        self.enter(World(*pair, window=window), depth)
        runs.append(1)

    def hurt(self) -> None:
        """Count a fault, and where it struck."""
        self.budget -= 1
        hurt_at[self.world.client_session.state, self.world.server_session.state] += 1

    # -- the connection --------------------------------------------------------------------------

    @may_hurt("linked")
    @rule()
    def the_connection_is_reset(self) -> None:
        self.hurt()
        self.world.reset()

    @may_hurt("linked")
    @rule(who=SIDES)
    def one_direction_ends(self, who: Side) -> None:
        self.hurt()
        self.world.pipes[who].ended = True

    @may_hurt("linked")
    @rule(who=SIDES)
    def one_direction_stalls(self, who: Side) -> None:
        self.hurt()
        self.world.pipes[who].stalled = True

    @precondition(lambda self: any(pipe.stalled for pipe in self.world.pipes.values()))
    @rule()
    def what_stalled_moves_again(self) -> None:
        for pipe in self.world.pipes.values():
            pipe.stalled = False

    @may_hurt("not linked")
    @rule()
    def nobody_answers_at_the_port(self) -> None:
        self.hurt()
        self.world.client.linked = True
        self.world.client.link.handle(ConnectFailed("Connection refused"))

    @may_hurt("bytes")
    @rule(at=st.integers(0, 2000), mask=st.integers(1, 255))
    def a_byte_changes_on_the_way(self, at: int, mask: int) -> None:
        self.hurt()
        for pipe in self.world.pipes.values():
            if pipe.bytes:
                pipe.bytes[at % len(pipe.bytes)] ^= mask
                return

    @may_hurt("linked")
    @rule(who=SIDES, said=plausible)
    def a_plausible_message_is_forged(self, who: Side, said: Spoken) -> None:
        self.hurt()
        self.world.forge(who, said)

    @may_hurt("linked")
    @rule(who=SIDES, data=st.binary(min_size=1, max_size=40))
    def somebody_talks_in(self, who: Side, data: bytes) -> None:
        self.hurt()
        self.world.forge(who, data)

    # -- the work --------------------------------------------------------------------------------

    @may_hurt("work")
    @rule(who=SIDES)
    def work_fails(self, who: Side) -> None:
        if self.world.end(who).hands.able:
            self.hurt()
            self.world.fail(who, FAILED)

    @may_hurt("work")
    @rule(who=SIDES)
    def work_hangs(self, who: Side) -> None:
        if self.world.end(who).hands.able:
            self.hurt()
            self.world.end(who).hands.hangs = True

    @precondition(lambda self: self.budget > 0 and self.world.server.hands.preparing)
    @rule(refusal=st.sampled_from(REFUSALS))
    def the_server_makes_no_offer(self, refusal: OfferRefused) -> None:
        self.hurt()
        self.world.fail("server", refusal)

    @may_hurt()
    @rule(index=st.sampled_from(SEGMENTS))
    def the_servers_weights_change(self, index: int) -> None:
        self.hurt()
        self.world.fabric.contents[index] += b" changed"

    # -- the owners, and time --------------------------------------------------------------------

    @may_hurt()
    @rule(who=SIDES)
    def an_owner_stops_it(self, who: Side) -> None:
        self.hurt()
        self.world.end(who).link.handle(StopRequested())

    @may_hurt()
    @rule()
    def a_deadline_passes(self) -> None:
        self.hurt()
        self.world.wait_for_a_deadline()

    @precondition(
        lambda self: self.sources > 0 and self.world.client_session.state is State.FALLBACK
    )
    @rule(contents=st.sampled_from([None, ANOTHER]), depth=depths)
    def the_next_source_is_tried(self, contents: tuple[bytes, ...] | None, depth: Depth) -> None:
        self.finish()
        self.check_the_log()
        self.lines.clear()
        self.sources -= 1
        self.budget += 1
        held, now = self.world.holding, self.world.now()
        source = World(*self.pair, contents, held, window=self.window, begun=now)
        self.enter(source, depth)

    # -- the end ---------------------------------------------------------------------------------

    def finish(self) -> None:
        """time-settles: with what can still happen, and then with nothing but time."""
        world, begun = self.world, self.world.now()
        world.run()
        while world.next_due() is not None:
            world.wait_for_a_deadline()
            world.run()
        assert world.now() - begun <= LONGEST_S, "time-settles"
        for end in world.ends:
            assert end.settled or not end.linked, f"time-settles: {end.side}"
            assert end.link.closed or not end.linked, f"nothing is left: {end.side}"


def test_a_hostile_world_ends_right_and_in_time(figures: list[str]) -> None:
    hurt_at.clear()
    runs.clear()
    begun = perf_counter()
    run_state_machine_as_test(Hostile)
    seconds = perf_counter() - begun

    total = sum(hurt_at.values())
    for side, name in enumerate(("client", "server")):
        for state in LIVING:
            count = sum(n for at, n in hurt_at.items() if at[side] is state)
            figures.append(f"faults that met the {name} in {state.name}: {count / total:.0%}")
    living = sum(n for at, n in hurt_at.items() if not set(at) & TERMINAL)
    figures.append(f"hostile: {len(runs)} runs, {len(runs) / seconds * 60:.0f} a minute")
    assert living > total / 3, "faults must meet sessions that live"
    for state in LIVING:
        assert any(at[0] is state for at in hurt_at), f"no fault met a client in {state.name}"


def test_a_refusal_arrives_at_a_peer_that_keeps_sending() -> None:
    # What nobody has read makes a hang-up a reset, and that would eat the refusal. The runs above
    # find it by chance; it is too easily broken to be left to that.
    stranger = replace(WISH, identity=Identity({**WISH.identity.hard, "dtype": "another"}))
    world = World(stranger, OFFERING)
    while not world.pipes["server"].bytes:
        world.do(world.choices()[0])
    world.forge("server", bytes(100_000))
    world.run()
    verdicts = [end.session.verdict for end in world.ends]
    assert [v.reason for v in verdicts if v] == [Reason.IDENTITY_MISMATCH] * 2
