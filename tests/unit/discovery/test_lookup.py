"""Looking sources up: what is handed out, in which order, and what a bad finder costs."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from netloader.config import Endpoint
from netloader.discovery import lookup
from netloader.discovery.base import Candidate, DiscoveryError, Finder, Found, Key
from netloader.discovery.lookup import ENOUGH, PROBE_S, Looked, Lookup
from netloader.discovery.names import Address
from netloader.io.clock import monotonic
from netloader.log import capture, get_logger
from tests.support.sockets import blackhole
from tests.unit.io.helpers import SOON_S, closed_port, eventually

KEY = Key("tiny", "0123")
LOGGER = get_logger("client")


class Names:
    """A finder that says what it is told to."""

    def __init__(self, *found: Candidate, unreadable: int = 0, name: str = "names") -> None:
        self.name = name
        self.found = Found(found, unreadable)
        self.error: Exception | None = None
        self.go_on: threading.Event | None = None
        self.asked = 0

    def find(self, key: Key, timeout_s: float) -> Found:
        self.asked += 1
        if self.go_on is not None:
            self.go_on.wait(timeout_s + SOON_S)
        if self.error is not None:
            raise self.error
        return self.found


@contextmanager
def open_ports(count: int) -> Iterator[list[Endpoint]]:
    with ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        yield [Endpoint(*server.getsockname()) for server in servers]


def events(lines: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event]


def looking(*finders: Finder, timeout_s: float = SOON_S, own: Sequence[Endpoint] = ()) -> Lookup:
    return Lookup(finders, KEY, "here", timeout_s, LOGGER, own=lambda: own)


def test_the_same_host_comes_first_then_the_idle_one_then_the_fast_one() -> None:
    with open_ports(4) as (busy, slow, fast, here):
        finder = Names(
            Candidate(busy, "there", 1.0, 2e9),
            Candidate(slow, "there", 0.5, 1e6),
            Candidate(fast, "there", 0.5, 1e9),
            Candidate(here, "here", 2.0),
        )
        assert looking(finder).look().sources == (here, fast, slow, busy)


def test_clients_that_start_together_do_not_all_begin_with_the_same_source() -> None:
    with open_ports(4) as places:
        finder = Names(*map(Candidate, places))
        assert len({looking(finder).look().sources[0] for _ in range(40)}) > 1


def test_sources_that_were_written_stay_in_their_order_and_need_not_be_up() -> None:
    down, other = closed_port(), Endpoint("10.9.9.9", 1)
    with open_ports(1) as (found,):
        looked = looking(Address(down), Names(Candidate(found)), Address(other)).look()

    assert looked.sources == (down, found, other)


def test_sources_that_failed_go_last_whoever_named_them() -> None:
    written = Endpoint("10.9.9.9", 1)
    with open_ports(2) as (first, second):
        candidates = (Candidate(first, "here"), Candidate(second, "there"))
        finders = (Address(written), Names(*candidates))
        failed = [written, first]
        ordered = Lookup(
            finders,
            *(KEY, "here", SOON_S, LOGGER),
            ordered=lambda sources: sorted(sources, key=failed.__contains__),
        )
        assert ordered.look().sources == (second, written, first)


def test_an_instance_never_finds_itself() -> None:
    with open_ports(2) as (mine, theirs):
        finder = Names(Candidate(mine), Candidate(theirs))
        assert looking(finder, own=[mine]).look().sources == (theirs,)


def test_nobody_is_an_answer_and_no_problem() -> None:
    with capture() as lines:
        assert looking(Names()).look() == Looked()

    assert not events(lines, "netloader.discovery.failed")


def test_thousands_that_are_gone_cost_a_second_and_the_one_that_lives_is_found() -> None:
    gone = [Candidate(closed_port()) for _ in range(20)]
    gone += [Candidate(Endpoint(f"127.9.{i // 250}.{i % 250 + 1}", 9)) for i in range(2000)]
    with open_ports(1) as (living,):
        begun = monotonic()
        looked = looking(Names(*gone, Candidate(living))).look()
        took = monotonic() - begun

    assert looked.sources == (living,)
    assert took < PROBE_S + SOON_S


def test_hosts_that_swallow_packets_cost_no_more_than_the_probe() -> None:
    with blackhole("127.0.0.1") as hole:
        begun = monotonic()
        looked = looking(Names(Candidate(hole))).look()
        took = monotonic() - begun

    assert looked.sources == ()
    assert looked.unreachable == (hole,)
    assert PROBE_S <= took < PROBE_S + SOON_S


def test_no_more_than_enough_are_handed_out() -> None:
    with open_ports(ENOUGH + 3) as places:
        assert len(looking(Names(*map(Candidate, places))).look().sources) == ENOUGH


def test_a_finder_that_never_answers_costs_its_time_out_and_is_not_asked_twice() -> None:
    silent = Names(name="silent")
    silent.go_on = threading.Event()
    with open_ports(1) as (found,), capture() as lines:
        both = looking(silent, Names(Candidate(found)), timeout_s=0.3)
        begun = monotonic()
        looks = [both.look(), both.look()]
        took = monotonic() - begun
        silent.go_on.set()
        assert eventually(lambda: not both.look().problems)

    assert [looked.sources for looked in looks] == [(found,)] * 2
    assert looks[0].problems == ("silent: no answer within 0.3 s",)
    assert took >= 0.6
    assert len(events(lines, "netloader.discovery.failed")) == 1, "one warning, not one a look"


@pytest.mark.parametrize("error", [DiscoveryError("why"), OSError(5, "why"), ValueError("why")])
def test_whatever_a_finder_raises_is_told_once_and_costs_only_its_sources(error: Exception) -> None:
    bad = Names(name="bad")
    bad.error = error
    with open_ports(1) as (found,), capture() as lines:
        both = looking(bad, Names(Candidate(found)))
        looks = [both.look(), both.look()]

    assert [looked.sources for looked in looks] == [(found,)] * 2
    assert looks[0].problems == ("bad: why",)
    line = events(lines, "netloader.discovery.failed")[0]
    assert len(events(lines, "netloader.discovery.failed")) == 1
    assert (line["netloader.finder"], line["netloader.detail"]) == ("bad", "why")


def test_garbage_is_one_warning_until_it_is_gone() -> None:
    finder = Names(unreadable=7)
    with capture() as lines:
        one = looking(finder)
        one.look()
        one.look()

    told = [line["netloader.detail"] for line in events(lines, "netloader.discovery.odd")]
    assert told == ["7 of its entries cannot be read, and are left out"]


def test_a_subscriber_hears_of_sources_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "REFRESH_S", 0.01)
    heard: list[Sequence[Endpoint]] = []
    finder = Names()
    with open_ports(1) as (found,):
        end = looking(finder).subscribe(heard.append)
        assert eventually(lambda: len(heard) > 1)
        finder.found = Found((Candidate(found),))
        assert eventually(lambda: (found,) in heard)
        end()
        assert eventually(lambda: not lookers())


def lookers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "netloader-lookup"]
