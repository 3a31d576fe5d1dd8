"""Many clients from one process: good ones, rude ones, and processes that are killed.

Rude clients speak the protocol by hand up to a phase and then reset their connections or go
silent; killed ones are forked, fill a model with netloader's own code, and send themselves SIGKILL
on entering a state or in the middle of the bytes.
"""

import contextlib
import os
import random
import signal
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from netloader.config import Endpoint
from netloader.fsm.messages import Answer, Lane, Offer, Opened, Request
from netloader.io import ClientOptions, fill
from netloader.wire.frames import HEADER, encode
from tests.support.peers import (
    IDENTITY,
    Halt,
    Line,
    Spec,
    Watch,
    Words,
    build,
    die_with_parent,
    orders,
    possessions,
)
from tests.unit.io.helpers import Peer as Hand
from tests.unit.io.helpers import hello

PHASES = ("connected", "half a hello", "offered", "asked", "sending")
WORKERS = 4
FLOOD = 500
REFUSAL_BYTES = 4096
"""An offer is longer than this, a refusal is not."""


@dataclass(frozen=True, slots=True)
class Sessions:
    """An order: so many sessions of each kind."""

    good: int = 0
    reset: int = 0
    silent: int = 0
    killed: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Flood:
    """An order: connect, say nothing, and ask for offers until told otherwise."""

    idle: int = FLOOD


def options_of(spec: Spec, watch: Watch | None = None) -> ClientOptions:
    """How a client of this crowd fills its model."""
    return ClientOptions(
        transports=spec.transports,
        lanes=spec.lanes,
        deadlines=spec.deadlines,
        report=lambda done, total: watch.reached(share=done / total) if watch else None,
    )


def act_as_crowd(spec: Spec, line: Line, say: Callable[..., None], watch: Watch) -> None:
    """Carry out orders for sessions; each is answered with what became of them."""
    del watch
    torch.set_num_threads(1)  # a process that forks must not have a pool of threads
    modules = [build(0, spec) for _ in range(WORKERS)]
    for order in orders(line):
        match order:
            case Sessions():
                kill(spec, order)
                crowd = Crowd(spec, modules, order)
                say(ends=crowd.run(), **possessions())
            case Flood():
                Floods(spec, order, line, say).run()
            case _:
                say(**possessions())


@dataclass
class Crowd:
    """Good and rude clients on a few threads."""

    spec: Spec
    modules: list[nn.Module]
    order: Sessions
    ends: "Counter[str]" = field(default_factory=Counter)
    kept: list[Hand] = field(default_factory=list)

    def run(self) -> Words:
        """Let all come, in a random order; how many ended how."""
        order = self.order
        kinds = ["good"] * order.good + ["reset"] * order.reset + ["silent"] * order.silent
        chance = random.Random(order.seed)
        chance.shuffle(kinds)
        queue = [(kind, chance.choice(PHASES), chance.randrange(1, 200)) for kind in kinds]
        threads = [
            threading.Thread(target=self._work, args=(queue, module)) for module in self.modules
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for hand in self.kept:
            hand.sock.close()
        return dict(self.ends)

    def _work(self, queue: list[tuple[str, str, int]], module: nn.Module) -> None:
        options = options_of(self.spec)
        while True:
            try:
                kind, phase, size = queue.pop()
            except IndexError:
                return
            if kind == "good":
                outcome = fill(module, self.spec.sources, IDENTITY, options)
                self.ends["good" if outcome.ok else outcome.history()] += 1
            else:
                with contextlib.suppress(OSError):
                    self._rude(kind, phase, size)
                self.ends[kind] += 1

    def _rude(self, kind: str, phase: str, size: int) -> None:
        hands = speak(Endpoint.parse(self.spec.sources[0]), PHASES.index(phase), size)
        for hand in hands:
            if kind == "reset":
                reset(hand.sock)
        if kind == "silent":
            self.kept += hands


def speak(endpoint: Endpoint, phase: int, size: int) -> list[Hand]:
    """Speak as a client would up to a phase; the connections."""
    control = Hand.call(endpoint)
    words = encode(hello(identity=IDENTITY))
    if phase == 1:
        control.sock.sendall(words[:size])
    if phase < 2:
        return [control]
    control.sock.sendall(words)
    offer = control.hear()
    if phase == 2 or not isinstance(offer, Offer):
        return [control]
    lane = Hand.call(endpoint)
    lane.say(Lane(offer.session, 0))
    control.say(Answer("tcp"))
    if not isinstance(control.hear(), Opened):
        return [control, lane]
    control.say(Request(tuple(range(len(offer.segment_digests)))))
    if phase > 3:
        lane.sock.recv(size << 10)
    return [control, lane]


def skim(endpoint: Endpoint) -> bool:
    """Ask for an offer, and leave as soon as all of it is here; whether it was one."""
    with Hand.call(endpoint) as hand:
        hand.say(hello(identity=IDENTITY))
        header = hand.sock.recv(HEADER.size, socket.MSG_WAITALL)
        length = left = HEADER.unpack(header)[2]
        while left and (data := hand.sock.recv(left)):
            left -= len(data)
        return not left and length > REFUSAL_BYTES


def reset(sock: socket.socket) -> None:
    """Close with an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def kill(spec: Spec, order: Sessions) -> None:
    """Processes that fill a model, and die of SIGKILL on the way."""
    chance = random.Random(order.seed)
    for _ in range(order.killed):
        state = chance.choice(("handshake", "validate", "transfer", "bytes"))
        at = Halt("kill", share=0.1) if state == "bytes" else Halt("kill", state)
        child = os.fork()
        if not child:
            _die(replace(spec, halt=at))
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"a client that was to die at {state} ended with {status}"
        assert os.WTERMSIG(status) == signal.SIGKILL


def _die(spec: Spec) -> None:
    try:
        die_with_parent()
        watch = Watch(lambda **_: None, spec.halt)
        fill(build(0, spec), spec.sources, IDENTITY, options_of(spec, watch))
    finally:
        os._exit(1)


@dataclass
class Floods:
    """Idle connections, and clients that take an offer and leave, over and over."""

    spec: Spec
    order: Flood
    line: Line
    say: Callable[..., None]

    def run(self) -> None:
        """Go on until the next order."""
        endpoint = Endpoint.parse(self.spec.sources[0])
        idle: list[Hand] = []
        offers = 0
        self.say(flooding=True)
        while not self.line.poll():
            with contextlib.suppress(OSError):
                if len(idle) == self.order.idle:
                    idle.pop(0).sock.close()
                idle.append(Hand.call(endpoint))
                if len(idle) % 10 == 0:
                    offers += skim(endpoint)
        for hand in idle:
            hand.sock.close()
        self.say(offers=offers, idle=len(idle), order=str(self.line.recv()))
