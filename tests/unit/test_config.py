"""Options: what is accepted, what is refused with which words, what stays hidden."""

import dataclasses
import math
from enum import Enum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netloader.config import (
    DEADLINE_LIMITS,
    LONGEST_S,
    SHOWN_CHARS,
    Deadlines,
    Endpoint,
    Place,
    Reader,
    Secret,
    bandwidth,
    choice,
    each,
    number,
    shown,
    text_line,
    whole,
)

# Secret


def test_a_secret_shows_itself_only_when_asked() -> None:
    secret = Secret("correct horse")

    assert secret.reveal() == "correct horse"
    for text in (repr(secret), str(secret), f"{secret}", f"{secret:>20}", f"{secret!r}"):
        assert text.strip() == "Secret(***)"
    assert "horse" not in repr([secret])


def test_secrets_compare_by_value() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1


# Bandwidth


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        (10**7, 10**7),
        ("500MB", 500_000_000),
        ("2GB", 2_000_000_000),
        ("1.5 GiB/s", 3 << 29),
        ("64mib", 64 << 20),
        (" 1000GB ", 10**12),
    ],
)
def test_a_bandwidth_is_a_number_or_a_text_with_its_unit(value: object, rate: int) -> None:
    assert bandwidth(value) == rate


@pytest.mark.parametrize(
    "value",
    ["", "500", "2G", "2Gbit", "-1GB", "1e3MB", "2 TB", "٢GB", 9, 10**13, 1.5e9, True, None],
)
def test_what_is_no_bandwidth_is_refused_with_what_to_write(value: object) -> None:
    with pytest.raises(ValueError, match=r"cannot be used; give bytes per second, such as 500MB"):
        bandwidth(value)


# Endpoint


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.170.22.152:19374", "10.170.22.152", 19374),
        ("node-1.cluster_a.local:1", "node-1.cluster_a.local", 1),
        ("[::1]:65535", "::1", 65535),
        ("[2001:db8::7]:80", "2001:db8::7", 80),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
    ],
)
def test_an_endpoint_is_read_and_written_alike(text: str, host: str, port: int) -> None:
    endpoint = Endpoint.parse(text)

    assert (endpoint.host, endpoint.port) == (host, port)
    assert str(endpoint) == text


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("10.0.0.1", "write host:port or [IPv6]:port"),
        ("", "write host:port or [IPv6]:port"),
        (":80", "write host:port or [IPv6]:port"),
        ("host:", "write host:port or [IPv6]:port"),
        ("host:http", "write host:port or [IPv6]:port"),
        ("host:\uff18\uff10", "write host:port or [IPv6]:port"),
        ("tcp://host:80", "write host:port or [IPv6]:port"),
        ("host:80:90", "write host:port or [IPv6]:port"),
        ("[10.0.0.1]:80", "write host:port or [IPv6]:port"),
        ("::1:19374", "put the IPv6 address in brackets"),
        ("2001:db8:0:0:0:0:0:1:19374", "put the IPv6 address in brackets"),
        ("host:0", "port 0 is out of range; use 1 to 65535"),
        ("host:65536", "port 65536 is out of range; use 1 to 65535"),
        ("10.0.0.256:80", "host '10.0.0.256' is no host name, IPv4 or IPv6 address"),
        ("10.0.0:80", "host '10.0.0' is no host name"),
        ("[fe80::g]:80", "host 'fe80::g' is no host name"),
        ("[fe80::1%a b]:80", "is no host name"),
        ("[fe80::1%a\n]:80", "is no host name"),
        ("a b:80", "host 'a b' is no host name"),
        ("-rf:80", "host '-rf' is no host name"),
        ("host :80", "is no host name"),
    ],
)
def test_a_malformed_endpoint_is_refused_with_the_remedy(text: str, remedy: str) -> None:
    with pytest.raises(ValueError, match="endpoint") as caught:
        Endpoint.parse(text)

    assert repr(text) in str(caught.value)
    assert remedy in str(caught.value)


def test_an_endpoint_made_by_hand_is_checked_too() -> None:
    with pytest.raises(ValueError, match="port"):
        Endpoint("host", 0)
    with pytest.raises(ValueError, match="host"):
        Endpoint("", 1)


@settings(deadline=None)
@given(st.text() | st.from_regex(r"\[?[0-9a-f:.]+\]?:[0-9]+", fullmatch=True))
def test_any_text_is_an_endpoint_or_a_value_error(text: str) -> None:
    problem = ""
    try:
        endpoint = Endpoint.parse(text)
        assert Endpoint.parse(str(endpoint)) == endpoint
    except ValueError as error:
        problem = str(error)
    assert problem.isprintable()


# Deadlines


def test_every_deadline_has_limits_and_its_default_is_within() -> None:
    assert set(DEADLINE_LIMITS) == {field.name for field in dataclasses.fields(Deadlines)}
    assert Deadlines() == Deadlines(connect_s=5.0, handshake_s=30.0, stall_s=15.0)


@pytest.mark.parametrize("name", list(DEADLINE_LIMITS))
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, LONGEST_S * 1e9])
def test_an_impossible_deadline_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} is .*; use a number from"):
        Deadlines(**{name: value})


@pytest.mark.parametrize("name", [name for name in DEADLINE_LIMITS if name != "queue_s"])
def test_zero_is_no_deadline_except_for_the_queue(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Deadlines(**{name: 0.0})
    assert Deadlines(queue_s=0.0).queue_s == 0


def test_a_transfer_may_take_longer_the_more_it_carries_but_never_for_ever() -> None:
    deadlines = Deadlines(transfer_base_s=10.0, min_rate_bytes_per_s=2.0**20)

    assert deadlines.transfer_s(0) == 10.0
    assert deadlines.transfer_s(100 * 2**20) == 110.0
    assert deadlines.transfer_s(2**70) == LONGEST_S


# Reading untyped options


class Fruit(Enum):
    APPLE = "apple"
    PEAR = "pear"


def read(reader: Reader, value: object) -> tuple[object, list[str]]:
    problems: list[str] = []
    return reader(Place("FIELD", problems), value), problems


@pytest.mark.parametrize(
    ("reader", "value", "result"),
    [
        (text_line, "a b", "a b"),
        (whole(1, 16), 16, 16),
        (number(1.0, 5.0), 2, 2.0),
        (number(2.0**20, 2.0**30, 2.0**20), 2, 2.0 * 2**20),
        (choice(*Fruit), "Pear", Fruit.PEAR),
        (each(whole(0, 9)), [1, 2], (1, 2)),
    ],
)
def test_a_fitting_value_is_read(reader: Reader, value: object, result: object) -> None:
    assert read(reader, value) == (result, [])


@pytest.mark.parametrize(
    ("reader", "value", "problem"),
    [
        (text_line, 5, "FIELD: 5 cannot be used; give one line of text, not empty"),
        (text_line, " ", "FIELD: ' ' cannot be used; give one line of text, not empty"),
        (text_line, "a\nb", r"FIELD: 'a\nb' cannot be used; give one line of text, not empty"),
        (text_line, None, "FIELD is missing; give one line of text, not empty"),
        (whole(1, 16), 17, "FIELD: 17 cannot be used; give an integer from 1 to 16"),
        (whole(1, 16), True, "FIELD: True cannot be used; give an integer from 1 to 16"),
        (whole(1, 16), 4.0, "FIELD: 4.0 cannot be used; give an integer from 1 to 16"),
        (number(1.0, 5.0), math.nan, "FIELD: nan cannot be used; give a number from 1 to 5"),
        (number(1.0, 5.0), 10**400, "FIELD: an integer of 1329 bits cannot be used;"),
        (choice(*Fruit), "plum", "FIELD: 'plum' cannot be used; give one of apple, pear"),
        (choice(Fruit.PEAR), "apple", "FIELD: 'apple' cannot be used; give one of pear"),
        (each(whole(0, 9)), 3, "FIELD: 3 cannot be used; give a list, even of one"),
        (each(whole(0, 9)), [1, "x"], "FIELD[1]: 'x' cannot be used; give an integer from 0 to 9"),
    ],
)
def test_what_does_not_fit_is_named_with_value_and_remedy(
    reader: Reader, value: object, problem: str
) -> None:
    _, problems = read(reader, value)

    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_every_bad_item_of_a_list_is_named() -> None:
    assert len(read(each(text_line), ["a", 1, "b", 2])[1]) == 2


def test_unknown_keys_get_a_hint_and_never_show_their_value() -> None:
    problems: list[str] = []
    Place("HERE", problems).refuse_unknown({"sorces": "x", "zzz": "y", "sources": 1}, ["sources"])

    assert problems == [
        "HERE: there is no field 'sorces'; did you mean sources?",
        "HERE: there is no field 'zzz'; known: sources",
    ]


def test_what_an_error_shows_is_short_and_keeps_what_is_inside_a_container() -> None:
    assert shown("x" * 1000) == "'" + "x" * (SHOWN_CHARS - 2) + "…"
    assert shown({"password": "hunter2"}) == "an object with 1 fields"
    assert shown(["hunter2"]) == "a list of 1"
    assert shown(10**5000) == "an integer of 16610 bits"
    assert shown(7) == "7"
    assert shown("a\nb") == r"'a\nb'"
