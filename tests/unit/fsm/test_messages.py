"""Messages: plain data that nobody can change after it was said."""

import dataclasses
from typing import Any, get_args

import pytest

from netloader.fsm import messages
from netloader.fsm.identity import Identity
from netloader.fsm.messages import (
    Answer,
    Candidate,
    Hello,
    Lane,
    Message,
    Purpose,
    Reject,
    Request,
    Status,
)
from tests.support.messages import OFFER

KINDS: tuple[type[Any], ...] = (*get_args(Message), Lane)


def test_every_message_of_the_module_is_in_the_union_and_no_lane_is() -> None:
    defined = {
        kind
        for kind in vars(messages).values()
        if dataclasses.is_dataclass(kind) and kind.__module__ == messages.__name__
    }

    assert defined == {*KINDS, Candidate, Status}
    assert Lane not in get_args(Message)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_message_is_frozen_and_has_no_room_for_more(kind: type[Any]) -> None:
    assert kind.__dataclass_params__.frozen
    assert kind.__slots__ == tuple(field.name for field in dataclasses.fields(kind))


def test_a_message_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        OFFER.session = "another"  # type: ignore[misc]


def test_optional_fields_of_messages_have_neutral_defaults() -> None:
    hello = Hello((2,), Purpose.DESCRIBE, Identity())

    assert (hello.layouts, hello.transports, hello.digest_algorithms, hello.mac) == (
        (),
        (),
        (),
        "",
    )
    assert Request((0,)).lanes == 1
    assert (Reject("busy").detail, Reject("busy").retry_after_s) == ("", 0.0)
    assert (Candidate("tcp").rendezvous, Answer("tcp").rendezvous) == ({}, {})


def test_purposes_are_the_words_on_the_wire() -> None:
    assert [purpose.value for purpose in Purpose] == ["weights", "describe", "status"]
