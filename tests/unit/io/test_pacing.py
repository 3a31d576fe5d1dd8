"""What a server may send in a second: no more, in equal shares; no wait outlives its session."""

import threading
from functools import partial

import pytest
import torch

from netloader.config import Deadlines, Endpoint
from netloader.fsm.reasons import Reason
from netloader.io import fill, serve
from netloader.io.clock import monotonic
from netloader.io.failure import TransferError
from netloader.io.pacing import BURST_S, UNPACED, Bandwidth, Rates, SessionPace
from netloader.io.publishing import ServerOptions
from tests.unit.io.helpers import FAST, IDENTITY, MIB, SOON_S, asking, contents, module_of, sealed

MB = 10**6
RATE = 40 * MB
SLOW = Deadlines(min_rate_bytes_per_s=MB)
LATE_S = 0.2
"""How far the clock of a test may be behind that of the sender: two busy cores."""


def model(seed: int = 0, mib: int = 16) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return module_of(w=torch.randint(255, (mib * MIB,), generator=generator).to(torch.uint8))


# -- the bucket, without waiting -----------------------------------------------------------------


def test_bytes_are_allowed_one_after_the_other() -> None:
    bandwidth = Bandwidth(Rates(RATE))

    assert bandwidth.reserve(RATE, 100.0) == 0
    assert bandwidth.reserve(RATE, 100.0) == pytest.approx(1 - BURST_S)
    assert bandwidth.reserve(1, 100.5) == pytest.approx(1.5 - BURST_S)


def test_time_in_which_nothing_was_sent_is_made_up_for_in_small_part() -> None:
    bandwidth = Bandwidth(Rates(RATE))
    bandwidth.reserve(RATE, 0.0)
    waited = [bandwidth.reserve(RATE // 100, 60.0) for _ in range(100)]

    assert waited[-1] == pytest.approx(0.99 - BURST_S)


def test_what_is_sent_at_once_is_small_for_a_low_rate_and_never_nothing() -> None:
    assert Bandwidth(Rates(10 * MB)).step(MIB) == 10 * MB // 50
    assert Bandwidth(Rates(1000 * MB)).step(MIB) == MIB
    assert Bandwidth(Rates(1)).step(10) == 10
    assert UNPACED.step(MIB) == MIB


def test_another_limit_counts_while_its_owner_is_busy() -> None:
    busy = False
    bandwidth = Bandwidth(Rates(None, RATE, lambda: busy))
    free = [bandwidth.reserve(RATE, 100.0) for _ in range(3)]
    assert (free, bandwidth.step(100 * MIB)) == ([0, 0, 0], 100 * MIB)

    busy = True
    waited = [bandwidth.reserve(RATE, 100.0) for _ in range(2)]
    assert waited == [0, pytest.approx(1 - BURST_S)]
    assert bandwidth.step(100 * MIB) < MIB

    busy = False
    assert bandwidth.reserve(RATE, 100.0) == 0


def test_while_its_owner_is_busy_the_lower_limit_counts() -> None:
    assert Rates(RATE, 2 * RATE, lambda: True).now() == RATE
    assert Rates(2 * RATE, RATE, lambda: True).now() == RATE
    assert Rates(2 * RATE, RATE, lambda: False).now() == 2 * RATE


# -- its sessions --------------------------------------------------------------------------------


def test_sessions_get_equal_shares_whatever_the_number_of_their_lanes() -> None:
    bandwidth = Bandwidth(Rates(RATE))
    one, many = bandwidth.session(), bandwidth.session()
    sent = {one: 0, many: 0}
    begun = threading.Barrier(5)
    part = [bytes(bandwidth.step(MIB))]

    def lane(session: SessionPace) -> None:
        begun.wait(SOON_S)
        while sent[one] + sent[many] < RATE // 2:
            session.take(part)
            sent[session] += len(part[0])

    lanes = [threading.Thread(target=partial(lane, s)) for s in (one, many, many, many, many)]
    start = monotonic()
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join(SOON_S)
    elapsed = monotonic() - start

    assert sum(sent.values()) <= RATE * (elapsed + BURST_S + LATE_S)
    assert 0.6 < sent[one] / sent[many] < 1.7


def test_an_abort_ends_a_wait_and_every_later_one() -> None:
    bandwidth = Bandwidth(Rates(100))
    session = bandwidth.session()
    session.take([bytes(1000)])  # so the next has its turn in 10 s
    failures: list[TransferError] = []

    def wait() -> None:
        try:
            session.take([bytes(100_000)])
        except TransferError as error:
            failures.append(error)

    waiting = [threading.Thread(target=wait) for _ in range(3)]
    for thread in waiting:
        thread.start()
    session.abort()
    for thread in waiting:
        thread.join(SOON_S)

    assert [failure.reason for failure in failures] == [Reason.TRANSFER_FAILED] * 3
    assert bandwidth.reserve(1, monotonic()) <= 10.0  # another session does not pay for it


# -- a server ------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["tcp", "gloo"])
def test_a_client_gets_no_more_than_the_server_may_send(transport: str) -> None:
    origin, target = model(1), model(2)
    rate = 32 * MIB
    options = ServerOptions(max_bandwidth=rate, deadlines=SLOW, max_clients=1)
    with sealed(serve(origin, IDENTITY, options=options)) as server:
        start = monotonic()
        outcome = fill(target, [server.endpoint], IDENTITY, asking(transport))
        elapsed = monotonic() - start

    assert outcome.ok, outcome.history()
    assert contents(target) == contents(origin)
    last = MIB if transport == "tcp" else 16 * MIB  # is sent at once, when its turn has come
    assert elapsed >= (16 * MIB - last) / rate - BURST_S


def test_all_clients_together_get_no_more() -> None:
    origin, rate = model(1), 64 * MIB
    options = ServerOptions(max_bandwidth=rate, deadlines=SLOW, max_clients=2)
    with sealed(serve(origin, IDENTITY, options=options)) as server:
        start = monotonic()
        outcomes = []

        def load(endpoint: Endpoint) -> None:
            outcomes.append(fill(model(2), [endpoint], IDENTITY, asking("tcp", lanes=2)).ok)

        clients = [threading.Thread(target=load, args=(server.endpoint,)) for _ in range(2)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(SOON_S)
        elapsed = monotonic() - start

    assert outcomes == [True, True]
    assert elapsed >= 31 * MIB / rate - BURST_S


def test_a_transport_that_keeps_to_no_limit_is_not_offered() -> None:
    options = ServerOptions(
        transports=("shm", "tcp"), max_bandwidth="1GB", deadlines=FAST, max_clients=1
    )
    with sealed(serve(model(1), IDENTITY, options=options)) as server:
        outcome = fill(model(2), [server.endpoint], IDENTITY, asking("shm"))
        other = fill(model(2), [server.endpoint], IDENTITY, asking("tcp"))

    assert not outcome.ok
    assert "max_bandwidth" in outcome.history()
    assert other.ok, other.history()


def test_a_server_that_closes_does_not_wait_for_the_turn_of_its_sessions() -> None:
    origin = model(1, mib=64)
    options = ServerOptions(max_bandwidth=10 * MB, deadlines=SLOW, max_clients=1)
    under_way = threading.Event()
    server = sealed(serve(origin, IDENTITY, options=options))

    def load() -> None:
        def report(done: int, total: int) -> None:
            under_way.set()

        fill(model(2, mib=64), [server.endpoint], IDENTITY, asking("tcp", report=report))

    client = threading.Thread(target=load)
    client.start()
    assert under_way.wait(SOON_S)
    start = monotonic()
    server.close()

    assert monotonic() - start < 3.0  # at its rate, the rest would take more than 5 s
    client.join(SOON_S)
    assert not client.is_alive()
