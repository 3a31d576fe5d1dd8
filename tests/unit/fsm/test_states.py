"""States: the six names, and which of them are ends."""

from netloader.fsm.states import ENDS, INITIAL, LIVING, TERMINAL, State


def test_the_six_states_come_in_the_order_of_a_good_session() -> None:
    names = [state.name for state in State]

    assert names == ["LISTEN", "HANDSHAKE", "VALIDATE", "TRANSFER", "DONE", "FALLBACK"]
    assert [state.value for state in State] == [name.lower() for name in names]


def test_a_session_begins_alive_and_every_state_is_alive_or_an_end() -> None:
    assert INITIAL is State.LISTEN
    assert INITIAL in LIVING
    assert (*LIVING, *ENDS) == tuple(State)
    assert frozenset({State.DONE, State.FALLBACK}) == TERMINAL == set(ENDS)
