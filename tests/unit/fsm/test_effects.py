"""Effects: a closed union of orders, and the verdict that the last one carries."""

import dataclasses
from typing import Any, get_args

import pytest

from netloader.fsm import effects
from netloader.fsm.effects import AbortTransfer, Effect, Settle, StartTransfer, Verdict
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State


def test_every_order_of_the_module_is_in_the_union() -> None:
    defined = {
        kind
        for kind in vars(effects).values()
        if dataclasses.is_dataclass(kind) and kind.__module__ == effects.__name__
    }

    assert defined - {Verdict} == {*get_args(Effect)}


@pytest.mark.parametrize("kind", [*get_args(Effect), Verdict], ids=lambda kind: kind.__name__)
def test_an_order_is_frozen_and_has_no_room_for_more(kind: type[Any]) -> None:
    assert kind.__dataclass_params__.frozen
    assert kind.__slots__ == tuple(field.name for field in dataclasses.fields(kind))


def test_orders_compare_by_what_they_ask_for() -> None:
    assert AbortTransfer() == AbortTransfer()
    assert StartTransfer((0, 1), 2) == StartTransfer((0, 1), 2) != StartTransfer((0, 1), 1)


def test_the_defaults_of_a_verdict_claim_nothing() -> None:
    verdict = Verdict(State.FALLBACK, Reason.UNREACHABLE)

    assert not verdict.weights_dirty
    assert not verdict.by_peer
    assert (verdict.detail, verdict.differences, verdict.retry_after_s) == ("", (), 0.0)
    assert Settle(verdict).verdict is verdict
