"""Events: a closed union of facts; each name is a trigger of the machines."""

import dataclasses
from typing import Any, get_args

import pytest

from netloader.fsm import events
from netloader.fsm.events import (
    EVENTS,
    LOCAL_EVENTS,
    PEER_EVENTS,
    ConnectionLost,
    Event,
    StopRequested,
    Violated,
)
from netloader.fsm.messages import Message
from netloader.fsm.reasons import Reason


def test_what_a_peer_can_cause_is_its_messages_and_a_violation() -> None:
    assert {*PEER_EVENTS} == {*get_args(Message), Violated}


def test_every_event_is_either_the_peers_or_ours() -> None:
    assert not {*PEER_EVENTS} & {*LOCAL_EVENTS}
    assert (*PEER_EVENTS, *LOCAL_EVENTS) == EVENTS
    assert {*EVENTS} == {*get_args(Event)}


def test_every_event_of_the_module_is_in_the_union() -> None:
    defined = {
        kind
        for kind in vars(events).values()
        if dataclasses.is_dataclass(kind) and kind.__module__ == events.__name__
    }

    assert defined == {Violated, *LOCAL_EVENTS}


def test_names_are_unique_because_they_are_triggers() -> None:
    assert len({kind.__name__ for kind in EVENTS}) == len(EVENTS)


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_a_fact_is_frozen_and_has_no_room_for_more(kind: type[Any]) -> None:
    assert kind.__dataclass_params__.frozen
    assert kind.__slots__ == tuple(field.name for field in dataclasses.fields(kind))


def test_events_are_equal_when_their_fields_are() -> None:
    assert ConnectionLost("reset") == ConnectionLost("reset")
    assert ConnectionLost("reset") != ConnectionLost("closed")
    assert StopRequested() == StopRequested(Reason.STOPPED, "")
