"""What a server costs the process it lives in, and how that grows with the model."""

import contextlib
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch import nn

from netloader.config import Deadlines, Endpoint
from netloader.fsm.events import Violated
from netloader.fsm.messages import Hello, Lane, Offer, Reject
from netloader.io import fill
from netloader.wire.frames import HEADER, PREFIX
from tests.e2e.hostile_clients import Flood, Sessions, act_as_crowd
from tests.e2e.inference import act_as_engine
from tests.support.peers import IDENTITY, MIB, Peer, Spec, Words
from tests.unit.io.helpers import IDENTITY as HERE
from tests.unit.io.helpers import Peer as Hand
from tests.unit.io.helpers import asking, eventually, hello, module_of, pretending
from tests.unit.io.helpers import serving as in_process

pytestmark = pytest.mark.timeout(180)

HELD_UP_MS = 50.0
"""The longest that the listener may hold up inference."""
ROUNDS = 4
"""A call that holds the lock for long does so in every round. What others on a shared machine do to
the scheduling of two threads does not, so one good round is enough."""
BUSY_S = 2.0
CALM = Deadlines(handshake_s=60, validate_s=60, stall_s=20, queue_s=60)
MANY = Spec(mib=16, tensors=10_000, segment_mib=4, deadlines=CALM, max_clients=4)
MOST = replace(MANY, mib=2, tensors=200_000)
PROGRESS = "netloader.transfer.progress"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


class Shop:
    """An engine with a server and a busy loop."""

    def __init__(self, stack: ExitStack, spec: Spec) -> None:
        self._stack = stack
        self.spec = spec
        self._engine = stack.enter_context(Peer(act_as_engine, spec))
        self.endpoint = str(self._engine.hear()["endpoint"])

    def crowd(self) -> Peer:
        """A process that can be many clients."""
        spec = replace(self.spec, sources=(self.endpoint,))
        return self._stack.enter_context(Peer(act_as_crowd, spec))

    def begin(self) -> None:
        """Start to be busy."""
        assert self._engine.ask("be busy")["busy"]

    def end(self, what: str) -> Words:
        """Stop being busy; how the loop fared."""
        words = self._engine.ask("rest")
        print(f"{what}: {words}")
        assert not words["errors"]
        return words

    def quiet(self) -> Words:
        """How it fares without clients."""
        self.begin()
        threading.Event().wait(BUSY_S)
        return self.end("no clients")

    def assert_not_held_up(self, what: str, load: Callable[[], object]) -> None:
        """While something goes on, the listener never holds the lock for long."""
        held: list[float] = []
        for _ in range(ROUNDS):
            self.quiet()
            self.begin()
            load()
            held.append(self.end(what)["listener_ms"])
            if held[-1] < HELD_UP_MS:
                return
        raise AssertionError(f"{what}: the listener held inference up for {held} ms")

    def take_offer(self) -> Hand:
        """A client that has heard its offer, however long the digests take."""
        answer: object = Reject("not_ready")
        while isinstance(answer, Reject) and answer.reason == "not_ready":
            hand = self._stack.enter_context(Hand.call(Endpoint.parse(self.endpoint)))
            hand.sock.settimeout(CALM.handshake_s)
            hand.say(hello(identity=IDENTITY))
            answer = hand.hear()
        assert isinstance(answer, Offer), answer
        assert answer.manifest is not None
        assert len(answer.manifest.tensors) > self.spec.tensors
        return hand


def test_inference_is_not_held_up_by_a_flood_of_clients(stack: ExitStack) -> None:
    shop = Shop(stack, MANY)
    flood, guests = shop.crowd(), shop.crowd()

    def load() -> None:
        flood.tell(Flood())
        assert flood.hear()["flooding"]
        ends = guests.ask(Sessions(good=4))["ends"]
        offers = flood.ask("stop")["offers"]
        print(f"{offers} offers taken and left, transfers {ends}")
        assert offers
        assert ends == {"good": 4}

    shop.assert_not_held_up("500 idle connections, offers of 10,000 tensors, transfers", load)


def test_inference_is_not_held_up_by_an_offer_of_two_hundred_thousand_tensors(
    stack: ExitStack,
) -> None:
    shop = Shop(stack, MOST)
    shop.take_offer().sock.close()  # waits for the digests
    shop.assert_not_held_up("an offer of 200,000 tensors", lambda: shop.take_offer().sock.close())


def test_inference_is_not_held_up_by_the_largest_frame_a_client_may_send(
    stack: ExitStack,
) -> None:
    shop = Shop(stack, replace(MANY, mib=2, tensors=0))
    frame = b'{"kind":"request","body":{"segments":[%s]}}' % b",".join([b"1"] * (31 * MIB))

    def load() -> None:
        hand = shop.take_offer()
        with contextlib.suppress(ConnectionError):  # refused at its header: even better
            hand.sock.sendall(HEADER.pack(PREFIX[:4], PREFIX[4], len(frame)) + frame)
        answer = hand.hear()
        assert isinstance(answer, Reject) or answer is None

    shop.assert_not_held_up("a request of 62 MiB", load)


# -- many tensors --------------------------------------------------------------------------------


def tiny_tensors(count: int, seed: int) -> nn.Module:
    """A model of many small tensors."""
    return module_of(**{f"t{i}": torch.full((8,), seed * i) for i in range(count)})


def tap(target: Endpoint, heard: "Counter[str]") -> Callable[[Hand], None]:
    """A server that passes everything on to another, and counts the messages."""

    def pump(source: Hand, sink: Hand) -> None:
        with contextlib.suppress(OSError):
            while (word := source.hear()) is not None:
                assert not isinstance(word, Violated)
                heard[type(word).__name__] += 1
                sink.say(word)
            sink.sock.shutdown(socket.SHUT_WR)

    def script(client: Hand) -> None:
        with Hand.call(target) as server:
            first = client.hear()
            assert isinstance(first, Hello | Lane)
            heard[type(first).__name__] += 1
            server.say(first)
            if isinstance(first, Lane):
                while data := server.sock.recv(64 << 10):
                    client.sock.sendall(data)
                return
            back = threading.Thread(target=pump, args=(server, client))
            back.start()
            pump(client, server)
            back.join()

    return script


def test_messages_and_log_lines_do_not_grow_with_the_tensors(captured: list[Words]) -> None:
    spoken: list[Counter[str]] = []
    lines: list[list[str]] = []
    for count in (100, 10_000):
        heard: Counter[str] = Counter()
        captured.clear()
        target = tiny_tensors(count, 0)
        with (
            in_process(tiny_tensors(count, 1), segment_bytes=MIB) as server,
            pretending(tap(server.endpoint, heard)) as endpoint,
        ):
            assert fill(target, [endpoint], HERE, asking(lanes=1)).ok
            assert eventually(lambda: closings(captured) == 2)
        assert torch.equal(target.get_parameter("t99"), torch.full((8,), 99))
        spoken.append(heard)
        # Progress is told once a second: how often depends on the machine, not on the tensors.
        lines.append(sorted(e for line in captured if (e := line["event"]) != PROGRESS))
    print(f"{dict(spoken[1])}, {len(lines[1])} log lines")
    assert spoken[0] == spoken[1]
    assert lines[0] == lines[1]


def closings(lines: list[Words]) -> int:
    """How many sessions have ended, of both sides."""
    return sum(line["event"] == "netloader.session.closed" for line in lines)


@pytest.mark.parametrize("transport", ["tcp", "gloo"])
def test_eight_times_the_tensors_cost_about_eight_times_the_time(transport: str) -> None:
    # CPU time of this process, which is both sides: other processes do not count in it. Work that
    # grew with the square would show as 64 times.
    costs: list[float] = []
    for count in (2_500, 20_000):
        target = tiny_tensors(count, 0)
        best = math.inf
        with in_process(tiny_tensors(count, 1), segment_bytes=MIB) as server:
            for _ in range(3):
                start = time.process_time()
                assert fill(target, [server.endpoint], HERE, asking(transport)).ok
                best = min(best, time.process_time() - start)
        costs.append(best)
    print(f"{transport}: {costs[0]:.3f} s for 2,500 tensors, {costs[1]:.3f} s for 20,000")
    assert costs[1] < 24 * costs[0]
