"""Transports by name."""

from dataclasses import replace

import pytest

from netloader.io.transports import named, register
from netloader.io.transports.process_group import GLOO
from netloader.io.transports.tcp import TCP


def test_the_built_in_ones_are_found_by_name() -> None:
    assert named("tcp") is TCP
    assert named("gloo") is GLOO


def test_an_unknown_name_is_refused_and_says_what_there_is() -> None:
    with pytest.raises(ValueError, match="no transport named 'pigeon'; there are: gloo, tcp"):
        named("pigeon")


def test_a_host_can_bring_its_own_and_replace_one() -> None:
    ours = replace(TCP, sending=TCP.sending)
    try:
        register(ours)
        assert named("tcp") is ours
    finally:
        register(TCP)
    assert named("tcp") is TCP
