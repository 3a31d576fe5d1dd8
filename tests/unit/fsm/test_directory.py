"""Endpoints of sources: which of those that are named are taken up."""

from netloader.config import Endpoint
from netloader.fsm.directory import Directory


def at(port: int) -> Endpoint:
    return Endpoint("h", port)


def test_what_is_named_follows_what_was_given_each_once() -> None:
    directory = Directory([at(2), at(1)])

    assert directory.take_up((at(3), at(1), at(3), at(4)), room=9) == (2, 3)
    assert [directory[number] for number in range(len(directory))] == [at(2), at(1), at(3), at(4)]
    assert directory.take_up((at(3),), room=9) == ()


def test_a_client_is_never_its_own_source() -> None:
    assert Directory([at(1)], never=[at(9)]).take_up((at(9),), room=9) == ()


def test_no_more_are_taken_up_than_there_is_room_for() -> None:
    directory = Directory([at(1)])

    assert directory.take_up((at(1), at(2), at(3)), room=1) == (1,)
    assert directory.take_up((at(3),), room=0) == ()
    assert directory.take_up((at(3),), room=1) == (2,)
