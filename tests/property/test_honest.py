"""The honest world: whatever the order and however bytes are cut, two that match end well."""

import pytest
from hypothesis import given, settings
from hypothesis.stateful import initialize, run_state_machine_as_test

from netloader.fsm.effects import StartTransfer
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.fsm.terms import CatalogEntry, FetchSpec
from netloader.testing import World
from tests.property.machine import Conversation, Depth, depths, orders
from tests.property.strategies import IDENTITIES, MANIFESTS, UNLIKE, matching, windows
from tests.support.messages import OFFERING


class Honest(Conversation):
    """No fault at all: honest-ends-well."""

    @initialize(pair=matching(), window=windows, depth=depths)
    def begin(self, pair: tuple[FetchSpec, CatalogEntry], window: int, depth: Depth) -> None:
        self.enter(World(*pair, window=window), depth)

    def finish(self) -> None:
        self.world.run()
        assert self.done(), "honest-ends-well"
        assert all(end.link.closed for end in self.world.ends), "nobody waits for anything"
        assert self.world.next_due() is None


def test_an_honest_world_ends_well_however_bytes_are_cut() -> None:
    run_state_machine_as_test(Honest)


@pytest.mark.parametrize("name", UNLIKE)
@settings(max_examples=30)  # of each of so many kinds
@given(window=windows, order=orders)
def test_sides_that_differ_refuse_before_a_byte_moves(
    name: str, window: int, order: list[int]
) -> None:
    world = World(UNLIKE[name], OFFERING, window=window)
    world.run(order)

    expected = Reason.NOTHING_IN_COMMON
    if name in MANIFESTS:
        expected = Reason.MANIFEST_MISMATCH
    elif name in IDENTITIES:
        expected = Reason.IDENTITY_MISMATCH
    for end in world.ends:
        assert end.session.verdict is not None
        assert end.session.verdict.reason is expected, "both sides know why"
        assert not any(isinstance(e, StartTransfer) for s in end.steps for e in s.effects)
    sides = [end.session.verdict for end in world.ends]
    assert [v.by_peer for v in sides if v] in ([True, False], [False, True])
    if expected is not Reason.NOTHING_IN_COMMON:
        assert all(v and v.differences for v in sides), "never-silent: the field and both values"
    assert world.client_session.state is State.FALLBACK
