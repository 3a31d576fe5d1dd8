"""RELAY: a starting instance serves what it has received, until vLLM begins to change it."""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader import get_model_loader

from netloader.config import Endpoint
from netloader.fsm.messages import Reject
from netloader.fsm.published import ModelState
from netloader.fsm.reasons import Reason
from netloader.io import Outcome, Server, fill
from netloader.io.published import PublishedModel
from netloader.log import capture, get_logger
from netloader.vllm_plugin import register
from netloader.vllm_plugin.identity.identity import DRAFT, PROCESSED, RAW, TARGET
from netloader.vllm_plugin.load import display
from netloader.vllm_plugin.load.loaded import Loaded
from netloader.vllm_plugin.load.loader import NetLoader
from netloader.vllm_plugin.load.offer import offer
from netloader.vllm_plugin.load.receiving import tell_not_relayed
from netloader.vllm_plugin.serve.relay import COME_AGAIN
from netloader.vllm_plugin.serve.worker import this_worker
from tests.support import zoo
from tests.support.relay import Fault, Relay
from tests.unit.io.helpers import (
    FAST,
    MIB,
    SOON_S,
    Peer,
    asking,
    contents,
    eventually,
    hello,
    sealed,
    serving,
)
from tests.unit.vllm_plugin.helpers import (
    Model,
    identity,
    known,
    line_of,
    plan,
    post_process,
    receive,
    refusal,
    serve,
    settings,
    where,
)
from tests.unit.vllm_plugin.load.test_loader import Tiny, config_of, load_config

pytestmark = pytest.mark.usefixtures("worker_process")

SIZE: Final = 2048
"""Two layers of 16 MiB: far more than fits into the buffers of a connection."""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    register()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Gate:
    """A progress report that waits, from some number of bytes on, until the gate is opened."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, done: int, total: int) -> None:
        if done >= self.at:
            self.reached.set()
            assert self.open.wait(60)


class Running:
    """Work on a thread of its own, for the worker of this test."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.over = threading.Event()
        self._results: list[Any] = []
        context = copy_context()

        def run() -> None:
            try:
                self._results.append(work())
            finally:
                self.over.set()

        self._thread = threading.Thread(target=context.run, args=(run,))
        self._thread.start()

    def result(self) -> Any:
        self._thread.join(90)
        (found,) = self._results
        return found


class Starting:
    """An instance with RELAY that receives into a model, up to a gate."""

    def __init__(
        self, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, model: nn.Module, at: int
    ) -> None:
        self.gate = Gate(at)
        stack.callback(self.gate.open.set)
        self.model = model
        self._config: Any = None

        @contextmanager
        def bar(total: int, shown: bool) -> Iterator[Gate]:
            del total, shown
            yield self.gate

        monkeypatch.setattr(display, "bar", bar)

    def read(self, folder: Path) -> None:
        """The checkpoint there is what the ordinary loader reads."""
        self._config = config_of(folder)

    def begin(self, *sources: Endpoint, **extra: Any) -> Running:
        """Do what vLLM does between creating a model and post-processing it."""
        given = {"LISTEN_HOST": "127.0.0.1", "RELAY": True, "LANES": 1, "TRANSPORT": "tcp", **extra}
        loader = get_model_loader(load_config(**given))
        assert isinstance(loader, NetLoader)
        loader._plan = plan(sources=sources)

        def load() -> Loaded | None:
            if self._config is None:
                loader.load_weights(self.model, None)
            else:
                with set_current_vllm_config(self._config):
                    loader.load_weights(self.model, self._config.model_config)
            return loader._loaded

        return Running(load)


@pytest.fixture
def starting(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Starting:
    """One that has not received more than three quarters of its model."""
    return Starting(stack, monkeypatch, Model(2, SIZE), 24 * MIB)


def origin(stack: ExitStack, **options: Any) -> Server:
    options = {"segment_bytes": MIB, **options}
    return sealed(stack.enter_context(serving(Model(1, SIZE), identity(), **options)))


def child(stack: ExitStack, model: nn.Module, *sources: Endpoint) -> tuple[Gate, Running]:
    """A client that is held when it has received 2 MiB."""
    gate = Gate(2 * MIB)
    stack.callback(gate.open.set)
    patient = replace(FAST, stall_s=30)
    options = asking(report=gate, lanes=1, deadlines=patient)
    return gate, Running(lambda: fill(model, list(sources), identity(), options))


def relayed() -> PublishedModel:
    """What is served while it is received."""
    (published,) = known()
    return published


def test_a_child_is_served_while_its_parent_receives_and_told_before_post_processing(
    stack: ExitStack, starting: Starting
) -> None:
    source = origin(stack)
    loading = starting.begin(source.endpoint)
    assert starting.gate.reached.wait(SOON_S)
    parent = relayed()
    model = Model(3, SIZE)
    gate, filling = child(stack, model, where(), source.endpoint)
    assert gate.reached.wait(SOON_S)

    assert not loading.over.is_set()
    assert parent.state is ModelState.RECEIVING
    starting.gate.open.set()
    assert eventually(lambda: parent.state is ModelState.RETIRED)
    gate.open.set()
    assert loading.result() is not None
    assert parent.quiet(0)

    outcome: Outcome = filling.result()
    assert outcome.ok, outcome.history()
    first, second = outcome.attempts
    assert (first.reason, first.detail) == (Reason.NOT_READY, COME_AGAIN)
    assert first.nbytes >= 2 * MIB
    assert first.nbytes + second.nbytes == outcome.nbytes, "nothing came twice"
    assert contents(model) == contents(starting.model) == contents(Model(1, SIZE))


def test_post_processing_does_not_begin_while_a_child_reads(
    stack: ExitStack, starting: Starting
) -> None:
    loading = starting.begin(origin(stack).endpoint)
    assert starting.gate.reached.wait(SOON_S)
    parent = relayed()
    with parent.reading():
        starting.gate.open.set()
        assert eventually(lambda: parent.state is ModelState.RETIRED)
        assert not loading.over.wait(0.5)
    assert loading.result() is not None


def test_what_post_processing_replaces_is_freed_though_a_session_lingers(
    stack: ExitStack, starting: Starting
) -> None:
    loading = starting.begin(origin(stack).endpoint, WEIGHT_CACHE="no")
    assert starting.gate.reached.wait(SOON_S)
    lingering = relayed()
    starting.gate.open.set()
    loaded = loading.result()
    raw = StorageWeakRef(starting.model.get_parameter("up.weight").untyped_storage())  # type: ignore[no-untyped-call]
    post_process(starting.model)
    gc.collect()

    assert raw.expired()  # type: ignore[no-untyped-call]
    with capture() as lines:
        assert not offer(starting.model, plan(), loaded, settings())
    assert "WEIGHT_CACHE" in line_of(lines, "netloader.server.refused")["netloader.remedy"]
    assert lingering.state is ModelState.RETIRED


def test_afterwards_the_instance_serves_as_any_other_at_the_same_place(
    stack: ExitStack, starting: Starting, tmp_path: Path
) -> None:
    source = origin(stack, max_clients=1)
    prefix = f"{tmp_path}/rank-"
    loading = starting.begin(source.endpoint, OUTPUT_PREFIX=prefix, TRANSPORT="auto")
    assert starting.gate.reached.wait(SOON_S)
    before, place = relayed().entry, where()
    with Peer.call(source.endpoint) as peer:
        peer.say(hello(identity=identity().hard))
        refused = peer.hear()
    assert isinstance(refused, Reject)
    assert refused.other_sources == (str(place),)
    assert (tmp_path / "rank-0.txt").read_text() == str(place)
    assert (before.transports, before.layouts) == (("tcp",), (RAW,))
    starting.gate.open.set()
    loaded = loading.result()
    assert refusal() == (Reason.NOT_READY.value, COME_AGAIN)
    post_process(starting.model)
    assert offer(starting.model, plan(), loaded, settings())

    after = next(p.entry for p in known() if p.state is not ModelState.RETIRED)
    assert where() == place
    assert (after.facts, after.identity) == (before.facts, before.identity)
    model = Model(3, SIZE)
    assert receive(model).ok
    assert contents(model) == contents(Model(1, SIZE))


def test_children_are_told_at_once_when_the_ordinary_loader_takes_over(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The source holds other weights, so it would be seen if the fallback left a tensor alone.
    tensors, others = (zoo.llama_tensors(seed, torch.bfloat16) for seed in (1, 2))
    total = sum(tensor.nbytes for tensor in tensors.values())
    starting = Starting(stack, monkeypatch, Tiny(tensors), total // 2)
    starting.read(zoo.write(tmp_path / "m", zoo.llama_config(), tensors))
    source = sealed(stack.enter_context(serving(Tiny(others), identity())))
    wire = stack.enter_context(Relay(source.endpoint, Fault.GARBLE, total * 3 // 4))
    loading = starting.begin(wire.endpoint)
    assert starting.gate.reached.wait(SOON_S)
    filling = Running(lambda: fill(Tiny(others), where(), identity(), asking()))
    assert eventually(lambda: relayed().snapshot().clients == 1)
    starting.gate.open.set()

    assert loading.result() is not None
    (attempt,) = filling.result().attempts
    assert attempt.reason is Reason.NOT_SERVING
    assert attempt.detail == "the weights were not received"
    assert contents(starting.model) == contents(Tiny(tensors))


def test_nothing_is_served_meanwhile_unless_it_is_asked_for(
    stack: ExitStack, starting: Starting
) -> None:
    loading = starting.begin(origin(stack).endpoint, RELAY=False)
    assert starting.gate.reached.wait(SOON_S)
    assert this_worker().servers == ()
    starting.gate.open.set()
    assert loading.result() is not None


def test_a_relay_whose_model_is_not_served_after_all_is_gone(
    stack: ExitStack, starting: Starting
) -> None:
    loading = starting.begin(origin(stack).endpoint)
    assert starting.gate.reached.wait(SOON_S)
    starting.gate.open.set()
    loading.result()
    other = Model(4)
    serve(other, role=DRAFT)
    this_worker().abandon(TARGET)
    assert refusal()[0] == Reason.IDENTITY_MISMATCH.value
    assert receive(Model(5), DRAFT).ok


def test_the_port_is_free_again_when_a_start_fails(stack: ExitStack, starting: Starting) -> None:
    loading = starting.begin(origin(stack).endpoint)
    assert starting.gate.reached.wait(SOON_S)
    place, parent = where(), relayed()
    starting.gate.open.set()
    loading.result()
    this_worker().abandon(TARGET)
    assert parent.state is ModelState.RETIRED
    assert this_worker().servers == ()
    (attempt,) = fill(Model(3, SIZE), place, identity(), asking()).attempts
    assert attempt.reason in (Reason.UNREACHABLE, Reason.NOT_SERVING)


@pytest.mark.parametrize(
    ("relay", "layout", "lines"), [(True, PROCESSED, 1), (True, RAW, 0), (False, PROCESSED, 0)]
)
def test_a_processed_layout_is_not_relayed_and_the_log_says_so(
    relay: bool, layout: str, lines: int
) -> None:
    chosen = plan(sources=(Endpoint("127.0.0.1", 1),), layout=layout)
    with capture() as told:
        tell_not_relayed(chosen, settings(relay=relay), get_logger("client"))
    assert [line["event"] for line in told] == ["netloader.relay.failed"] * lines


@pytest.mark.parametrize(("parallel", "asked"), [(1, [1, 0]), (2, [1, 1])])
def test_several_sources_are_asked_at_the_same_time(
    stack: ExitStack, starting: Starting, parallel: int, asked: list[int]
) -> None:
    sources = [origin(stack), origin(stack)]
    starting.gate.open.set()
    endpoints = [source.endpoint for source in sources]
    loading = starting.begin(*endpoints, RELAY=False, PARALLEL=parallel)

    assert loading.result() is not None
    assert [source.snapshot().models[0].sessions for source in sources] == asked
    assert contents(starting.model) == contents(Model(1, SIZE))
