"""A model that is changed while it is served: new clients get what it holds then, never the old."""

import gc
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from netloader.fsm.messages import Reject
from netloader.fsm.reasons import Reason
from netloader.io import Deadlines
from netloader.io.module_state import ModuleState
from netloader.io.published import PublishedModel
from netloader.io.transports.tcp import TcpSender
from netloader.io.watch import ModuleUsage
from tests.support.relay import Fault, Relay
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import (
    IDENTITY,
    KIB,
    MIB,
    Peer,
    asking,
    contents,
    hello,
    module_of,
    random,
    sealed,
    serving,
)
from tests.unit.io.test_module_state import Scaled

pytestmark = pytest.mark.usefixtures("driver")
PATIENT = Deadlines(handshake_s=20, validate_s=20, stall_s=20, transfer_base_s=40, queue_s=20)


class Model(nn.Module):
    """Two layers, one with extra state."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(4, 4)
        self.second = Scaled(seed)
        self.kept = {"shift": torch.randn(4)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.add(self.second(self.first(x)), self.kept["shift"])


def rebind(model: Model) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data + 1


def assign(model: Model) -> None:
    state = model.state_dict()
    model.load_state_dict(
        {k: v + 1 if isinstance(v, torch.Tensor) else v for k, v in state.items()}, assign=True
    )


def in_place(model: Model) -> None:
    with torch.no_grad():
        model.first.weight.add_(1)


def new_parameter(model: Model) -> None:
    model.first.weight = nn.Parameter(model.first.weight.detach() + 1)


def submodule(model: Model) -> None:
    model.first = nn.Linear(4, 4)


def extra_state(model: Model) -> None:
    model.second.scale = 17.0


def hidden(model: Model) -> None:
    model.kept["shift"] = model.kept["shift"] + 1


def train(model: Model) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


CHANGES = [rebind, assign, in_place, new_parameter, submodule, extra_state, hidden, train]
x = torch.ones(2, 4)


@pytest.mark.parametrize("change", CHANGES)
def test_a_client_after_a_change_has_the_new_answers(change: Callable[[Model], None]) -> None:
    served = Model(1)
    with serving(served) as server:
        before = Model(2)
        assert fill(before, [sealed(server).endpoint], IDENTITY, asking()).ok
        change(served)
        after = Model(3)
        outcome = fill(after, [server.endpoint], IDENTITY, asking(deadlines=PATIENT))

    assert outcome.ok, outcome.history()
    assert not torch.equal(before(x), served(x))
    assert torch.equal(after(x), served(x))


def test_a_cast_model_is_refused_by_the_client_that_is_not() -> None:
    served = Model(1)
    with serving(served) as server:
        sealed(server)
        served.half()
        outcome = fill(Model(2), [server.endpoint], IDENTITY, asking(deadlines=PATIENT))

    (difference,) = outcome.attempts[-1].differences
    assert (difference.field, difference.theirs) == ("first.weight dtype", "float16")
    assert "cast" in difference.remedy


def test_a_model_that_cannot_be_served_any_more_says_why() -> None:
    served = Model(1)
    with serving(served) as server:
        sealed(server)
        served.to("meta")
        outcome = fill(Model(2), [server.endpoint], IDENTITY, asking(deadlines=PATIENT))

    assert outcome.attempts[-1].reason is Reason.NOT_SERVING
    assert "first.weight has no plain memory: it is on the meta device" in outcome.history()


def test_a_change_that_no_counter_tells_of_ends_in_the_new_weights_after_an_audit() -> None:
    served = Model(1)
    with serving(served) as server:
        sealed(server)
        assert server._open is not None
        (published,) = server._open[1].published_models
        served.first.weight.data.mul_(2)
        refused = fill(Model(2), [server.endpoint], IDENTITY, asking())
        published.audit()
        after = Model(3)
        outcome = fill(after, [server.endpoint], IDENTITY, asking(deadlines=PATIENT))

    assert refused.attempts[0].reason is Reason.DIGEST_MISMATCH
    assert outcome.ok, outcome.history()
    assert torch.equal(after(x), served(x))


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_were_changed_are_not_even_offered(change: Callable[[Model], None]) -> None:
    served = Model(1)
    with serving(served) as server:
        sealed(server)
        change(served)
        with Peer.call(server.endpoint) as peer:
            peer.say(hello())
            answer = peer.hear()

    assert isinstance(answer, Reject)
    assert answer.reason == "not_ready"
    assert "newer weights are being prepared" in answer.detail


@pytest.mark.parametrize("change", [rebind, extra_state, hidden])
def test_a_change_during_a_transfer_ends_that_session(
    change: Callable[[Model], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, run = Model(1), TcpSender.run
    changed = threading.Event()

    def run_and_change(self: TcpSender, *args: Any) -> int:
        sent = run(self, *args)
        if not changed.is_set():
            change(served)
            changed.set()
        return sent

    monkeypatch.setattr(TcpSender, "run", run_and_change)
    with serving(served) as server:
        target = Model(2)
        outcome = fill(target, [sealed(server).endpoint], IDENTITY, asking(deadlines=PATIENT))

    assert outcome.ok, outcome.history()
    assert outcome.attempts[0].reason is Reason.NOT_READY
    assert torch.equal(target(x), served(x))


def test_a_model_put_in_the_place_of_a_changed_one_is_what_clients_get() -> None:
    first, second = Model(1), Model(2)
    with serving(first) as server:
        assert sealed(server)._open is not None
        (replaced,) = server._open[1].published_models  # type: ignore[index]
        rebind(first)
        server.publish(second, IDENTITY)
        replaced.changed("found late")  # by a session that was under way
        after_put = Model(3)
        outcome = fill(after_put, [server.endpoint], IDENTITY, asking(deadlines=PATIENT))
        same = torch.equal(after_put(x), second(x))
        rebind(second)
        after_change = Model(4)
        again = fill(after_change, [server.endpoint], IDENTITY, asking(deadlines=PATIENT))

    assert outcome.ok, outcome.history()
    assert same
    assert again.ok, again.history()
    assert torch.equal(after_change(x), second(x))


def test_a_change_in_what_another_source_has_sent_is_found() -> None:
    def large(seed: int) -> nn.Module:
        return module_of(first=random(MIB // 4, seed=seed), second=random(MIB // 4, seed=seed + 1))

    def cut(done: int, total: int) -> None:
        if done == 4 * 64 * KIB:
            relay.cut()

    served, target = large(1), large(3)
    with serving(large(1)) as other, serving(served) as server:
        sealed(other), sealed(server)
        bits = served.get_parameter("first").data.view(torch.uint8)
        bits[:8].bitwise_xor_(1)  # moves no counter, and is in what `other` sends
        with Relay(other.endpoint, Fault.HOLD, 5 * 64 * KIB) as relay:
            options = asking(deadlines=PATIENT, lanes=1, report=cut)
            outcome = fill(target, [relay.endpoint, server.endpoint], IDENTITY, options)

    assert outcome.ok, outcome.history()
    assert 0 < outcome.attempts[0].nbytes < MIB
    assert contents(target) == contents(served)


def test_a_look_at_a_module_keeps_the_interpreter_lock() -> None:
    # A call that gives it up waits for it up to 5 ms beside a busy thread, for each tensor.
    usage = ModuleUsage(ModuleState(module_of(**{f"t{n}": torch.zeros(1) for n in range(20_000)})))
    turns, over, interval = [0], threading.Event(), sys.getswitchinterval()

    def take_turns() -> None:
        while not over.is_set():
            turns[0] += 1
            time.sleep(0)

    gc.collect()
    gc.disable()  # the finalizers of what other tests left may give it up
    sys.setswitchinterval(100)  # no thread is made to give it up
    thread = threading.Thread(target=take_turns)
    try:
        thread.start()
        before = turns[0]
        assert not usage.quick()
        assert turns[0] == before
    finally:
        sys.setswitchinterval(interval)
        gc.enable()
        over.set()
        thread.join()


def test_the_owner_is_asked_once_and_without_a_lock() -> None:
    asked: list[str] = []

    def ask(published: PublishedModel, why: str) -> bool:
        assert published.withdrawn == why
        published.quiet(0)  # takes the lock
        asked.append(why)
        return True

    served = Model(1)
    with serving(served) as server:
        sealed(server)
        assert server._open is not None
        (published,) = server._open[1].published_models
        published._on_change = ask
        published.changed("one")
        published.changed("two")
        assert asked == ["one"]
        assert published.renewed(0)
