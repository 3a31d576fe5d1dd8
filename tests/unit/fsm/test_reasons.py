"""Reasons: one word and one sentence for every way to end."""

import re

import pytest

from netloader.fsm.reasons import RETRYABLE, Reason


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_word_for_machines_and_a_sentence_for_people(reason: Reason) -> None:
    assert reason.value == reason.name.lower()
    assert re.fullmatch(r"[A-Z].{10,80}\.", reason.sentence)
    assert [r for r in Reason if r.sentence == reason.sentence] == [reason]


@pytest.mark.parametrize("reason", Reason)
def test_a_word_from_the_wire_is_the_same_reason_here(reason: Reason) -> None:
    assert Reason.of(reason.value) is reason


@pytest.mark.parametrize("word", ["", "BUSY", "out_of_cheese", "\x00"])
def test_an_unknown_reason_of_a_newer_peer_is_a_refusal(word: str) -> None:
    assert Reason.of(word) is Reason.REFUSED


def test_only_a_server_that_may_be_ready_later_is_asked_again() -> None:
    assert {Reason.BUSY, Reason.NOT_READY} == RETRYABLE
