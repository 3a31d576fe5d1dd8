"""A client that reports success holds the server's bytes; whatever differs is refused by name.

Real sockets and real gloo throughout; processes where one may die.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netloader.config import Endpoint
from netloader.fsm.identity import Identity
from netloader.fsm.reasons import Reason
from netloader.fsm.states import State
from netloader.io import WeightsError, fill, serve
from tests.e2e.engines import ForkServer
from tests.support import zoo as checkpoints
from tests.support.children import process
from tests.support.relay import Fault, Relay
from tests.unit.io.helpers import (
    IDENTITY,
    MIB,
    asking,
    contents,
    module_of,
    random,
    serving,
)

pytestmark = pytest.mark.timeout(180)

TRANSPORTS = pytest.mark.parametrize("transport", ["tcp", "gloo"])
Lines = list[dict[str, Any]]


class Meter(Relay):
    """Passes everything on, and counts what a server sends over data lanes."""

    def __init__(self, target: Endpoint) -> None:
        super().__init__(target, Fault.HOLD, 1 << 60)
        self.lane_bytes = 0

    def _through(self, data: bytes) -> bytes:
        self.lane_bytes += len(data)
        return data


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


# -- two models that are not the same ------------------------------------------------------------

BYTES = random(64, 64, seed=5, dtype=torch.uint8)
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def plain(*shape: int) -> Tensor:
    return random(*shape, seed=3)


def tied() -> nn.Module:
    module = module_of(embed=plain(8, 4))
    module.register_parameter("head", module.get_parameter("embed"))
    return module


def view(dtype: torch.dtype) -> nn.Module:
    return module_of(w=BYTES.clone().view(dtype))


PeerGroup = tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]

DIFFERENT: dict[str, PeerGroup] = {
    "another order": (
        lambda: module_of(a=plain(8), b=plain(8)),
        lambda: module_of(b=plain(8), a=plain(8)),
        "tensor 0 name",
    ),
    "bf16 for fp16": (lambda: view(torch.bfloat16), lambda: view(torch.float16), "w dtype"),
    "fp8 e4m3 for e5m2": (lambda: view(E4M3), lambda: view(E5M2), "w dtype"),
    "fp8 e4m3 for uint8": (lambda: view(E4M3), lambda: view(torch.uint8), "w dtype"),
    "fp8 e5m2 for uint8": (lambda: view(E5M2), lambda: view(torch.uint8), "w dtype"),
    "fp8 of another vendor": (lambda: view(E4M3), lambda: view(torch.float8_e4m3fnuz), "w dtype"),
    "int8 for uint8": (lambda: view(torch.int8), lambda: view(torch.uint8), "w dtype"),
    "another shape of as many elements": (
        lambda: module_of(w=plain(4, 9)),
        lambda: module_of(w=plain(6, 6)),
        "w shape",
    ),
    "more elements": (lambda: module_of(w=plain(9)), lambda: module_of(w=plain(8)), "w shape"),
    "another stride of the same shape": (
        lambda: module_of(w=plain(6, 6)),
        lambda: module_of(w=plain(6, 6).t()),
        "w stride",
    ),
    "a name only here": (
        lambda: module_of(a=plain(8), b=plain(8)),
        lambda: module_of(a=plain(8)),
        "tensor b",
    ),
    "a name only there": (
        lambda: module_of(a=plain(8)),
        lambda: module_of(a=plain(8), b=plain(8)),
        "tensor b",
    ),
    "no name in common": (
        lambda: module_of(a=plain(8)),
        lambda: module_of(b=plain(8)),
        "tensor a",
    ),
    "tied only here": (
        tied,
        lambda: module_of(embed=plain(8, 4), head=plain(8, 4)),
        "head shares",
    ),
    "tied only there": (
        lambda: module_of(embed=plain(8, 4), head=plain(8, 4)),
        tied,
        "head shares",
    ),
}


@TRANSPORTS
@pytest.mark.parametrize("difference", DIFFERENT)
def test_another_model_is_refused_before_a_byte_moves(
    stack: ExitStack, captured: Lines, difference: str, transport: str
) -> None:
    mine, theirs, named = DIFFERENT[difference]
    target = mine()
    before = contents(target)
    server = stack.enter_context(serving(theirs()))
    meter = stack.enter_context(Meter(server.endpoint))

    outcome = fill(target, [meter.endpoint], IDENTITY, asking(transport))

    (attempt,) = outcome.attempts
    assert (outcome.state, attempt.reason) == (State.FALLBACK, Reason.MANIFEST_MISMATCH)
    (found,) = attempt.differences
    assert found.field == named
    assert found.mine != found.theirs
    assert (meter.lane_bytes, outcome.nbytes, outcome.weights_dirty) == (0, 0, False)
    assert not [line for line in captured if line["event"] == "netloader.transfer.started"]
    assert contents(target) == before


@pytest.mark.parametrize(
    "module", [nn.Identity(), module_of(a=torch.empty(0), b=torch.empty(0, 7))]
)
def test_no_tensors_are_never_a_success(module: nn.Module) -> None:
    with serving(module_of(a=plain(8))) as server, pytest.raises(WeightsError, match="no bytes"):
        fill(module, [server.endpoint], IDENTITY, asking())
    with pytest.raises(WeightsError, match="no bytes"):
        serve(module, IDENTITY)


@TRANSPORTS
@pytest.mark.parametrize(
    ("field", "mine", "theirs"),
    [
        ("tensor_parallel", "0 of 2", "1 of 2"),
        ("tensor_parallel", "0 of 2", "0 of 1"),
        ("pipeline_parallel", "0 of 2", "1 of 2"),
        ("data_parallel", "0 of 2", "1 of 2"),
        ("expert_parallel", "True", "False"),
    ],
)
def test_shards_of_equal_sizes_are_told_apart_by_identity(
    stack: ExitStack, field: str, mine: str, theirs: str, transport: str
) -> None:
    server = stack.enter_context(serving(module_of(w=plain(64)), {**IDENTITY, field: theirs}))
    meter = stack.enter_context(Meter(server.endpoint))
    target = module_of(w=random(64, seed=9))
    before = contents(target)

    outcome = fill(target, [meter.endpoint], {**IDENTITY, field: mine}, asking(transport))

    (attempt,) = outcome.attempts
    assert attempt.reason is Reason.IDENTITY_MISMATCH
    (found,) = attempt.differences
    assert (found.field, found.mine, found.theirs) == (field, mine, theirs)
    assert (meter.lane_bytes, contents(target)) == (0, before)


@pytest.mark.parametrize(
    ("mine", "theirs", "reason"),
    [("1111", "2222", Reason.IDENTITY_MISMATCH), ("1111", "1111", Reason.VERIFIED)],
)
def test_another_revision_of_the_checkpoint_is_refused_by_both_values(
    mine: str, theirs: str, reason: Reason
) -> None:
    here, there = ({"checkpoint": revision} for revision in (mine, theirs))
    with serving(module_of(w=plain(64)), Identity(IDENTITY, there)) as server:
        outcome = fill(
            module_of(w=plain(64)), [server.endpoint], Identity(IDENTITY, here), asking()
        )

    (attempt,) = outcome.attempts
    assert attempt.reason is reason
    if reason is Reason.IDENTITY_MISMATCH:
        (found,) = attempt.differences
        assert (found.field, found.mine, found.theirs) == ("checkpoint", mine, theirs)
        assert "revision" in found.remedy


# -- bytes that are not what was published -------------------------------------------------------


def model(seed: int) -> nn.Module:
    """Three times what the buffers of a connection hold."""
    return module_of(
        experts=random(8, MIB, seed=seed),
        norm=random(1000, seed=seed + 1),
    )


def swap(experts: Tensor) -> None:
    experts[[0, 5]] = experts[[5, 0]]


def add(experts: Tensor) -> None:
    experts[7, 11:19] += 1.0


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "asleep": lambda experts: experts.zero_(),
    "updated": lambda experts: experts.copy_(random(8, MIB, seed=40)),
    "rebalanced": swap,
    "merged": add,
}


@TRANSPORTS
@pytest.mark.parametrize("change", CHANGES)
def test_weights_changed_after_they_were_published_are_refused_and_the_next_source_is_right(
    stack: ExitStack, change: str, transport: str
) -> None:
    first, second, target = model(1), model(1), model(50)
    servers = [stack.enter_context(serving(m, segment_bytes=MIB)) for m in (first, second)]
    for server in servers:  # published: a client has had them
        assert fill(model(60), [server.endpoint], IDENTITY, asking(transport)).ok
    CHANGES[change](first.get_parameter("experts").data)

    outcome = fill(target, [s.endpoint for s in servers], IDENTITY, asking(transport))

    assert [a.reason for a in outcome.attempts] == [Reason.DIGEST_MISMATCH, Reason.VERIFIED]
    assert contents(target) == contents(second)


@TRANSPORTS
def test_weights_changed_in_the_middle_of_a_transfer_are_refused(
    stack: ExitStack, transport: str
) -> None:
    def change(done: int, total: int) -> None:
        if not changed:
            changed.append(done)
            add(first.get_parameter("experts").data)

    changed: list[int] = []
    first, second, target = model(1), model(1), model(50)
    servers = [stack.enter_context(serving(m, segment_bytes=MIB)) for m in (first, second)]
    options = asking(transport, lanes=1, report=change)

    outcome = fill(target, [s.endpoint for s in servers], IDENTITY, options)

    broken, whole = outcome.attempts
    assert (broken.reason, whole.reason) == (Reason.DIGEST_MISMATCH, Reason.VERIFIED)
    assert 0 < broken.nbytes < outcome.nbytes == broken.nbytes + whole.nbytes
    assert contents(target) == contents(second)


@TRANSPORTS
def test_memory_that_was_freed_under_the_server_is_no_crash(
    stack: ExitStack, transport: str
) -> None:
    first, second, target = model(1), model(1), model(50)
    servers = [stack.enter_context(serving(m, segment_bytes=MIB)) for m in (first, second)]
    for server in servers:
        assert fill(model(60), [server.endpoint], IDENTITY, asking(transport)).ok
    first.get_parameter("experts").untyped_storage().resize_(0)

    outcome = fill(target, [s.endpoint for s in servers], IDENTITY, asking(transport))

    assert [a.reason for a in outcome.attempts] == [Reason.NOT_READY, Reason.VERIFIED]
    assert contents(target) == contents(second)
    alone = fill(model(70), [servers[0].endpoint], IDENTITY, asking(transport))
    assert alone.attempts[-1].reason is Reason.NOT_SERVING
    assert "the memory of experts was freed" in alone.attempts[-1].detail


@pytest.mark.parametrize("at", [0, 7, 9 * MIB + 3, 32 * MIB + 3999])
def test_one_bit_changed_on_the_way_is_caught_wherever_it_is(stack: ExitStack, at: int) -> None:
    source, target = model(1), model(50)
    server = stack.enter_context(serving(source, segment_bytes=MIB))
    relay = stack.enter_context(Relay(server.endpoint, Fault.GARBLE, at))

    outcome = fill(target, [relay.endpoint], IDENTITY, asking(lanes=1))

    assert [a.reason for a in outcome.attempts] == [Reason.DIGEST_MISMATCH]
    assert (outcome.ok, outcome.weights_dirty) == (False, True)
    assert outcome.nbytes == at // MIB * MIB


# -- buffers that do not fit ---------------------------------------------------------------------

OTHER_BUILD = """
import sys
from netloader.io import chunks as cut
from tests.e2e.test_never_wrong import chunks
from tests.unit.io.helpers import serving

cut.SMALL_BYTES = 1 << 30
with serving(chunks(1), segment_bytes=8 << 20) as server:
    print(server.endpoint, flush=True)
    sys.stdin.read()
"""
CLIENT = """
import json, sys
from netloader.io import fill
from tests.e2e.test_never_wrong import chunks
from tests.unit.io.helpers import IDENTITY, asking

outcome = fill(chunks(2), sys.argv[1:], IDENTITY, asking("gloo"))
print(json.dumps([[a.reason.value, a.detail] for a in outcome.attempts]))
"""


def chunks(seed: int) -> nn.Module:
    """Pieces that one build sends alone and another might send together."""
    return module_of(**{name: random(300_000, seed=seed) for name in "abc"})


def test_a_server_that_cuts_other_buffers_is_refused_before_gloo_can_end_the_process() -> None:
    with process(OTHER_BUILD) as server:
        assert server.stdout is not None
        with process(CLIENT, server.stdout.readline().strip()) as client:
            words, _ = client.communicate(timeout=90)

    assert client.returncode == 0
    ((reason, detail),) = json.loads(words)
    assert reason == "transfer_failed"
    assert "chunks" in detail


# -- an engine whose source broke ----------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_an_engine_whose_source_broke_in_the_middle_answers_from_its_own_checkpoint(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    config = checkpoints.llama_config(torch_dtype="bfloat16")
    tensors = checkpoints.llama_tensors(1, torch.bfloat16)
    folder = checkpoints.write(tmp_path / "full", config, tensors)
    cut = {"SEGMENT_MIB": 1, "LANES": 1, "TRANSPORT": "tcp"}
    with fork_server.engine(folder, {**cut, "OUTPUT_PREFIX": f"{tmp_path}/a-"}) as server:
        endpoint = Endpoint.parse((tmp_path / "a-0.txt").read_text())
        with Relay(endpoint, Fault.GARBLE, 3 * MIB // 2) as relay:
            source = [{"device_id": 0, "sources": [str(relay.endpoint)]}]
            with fork_server.engine(folder, {**cut, "SOURCE": source}) as client:
                assert client.generate() == server.generate()
                assert client.held() == server.held()
                assert "digest_mismatch" in client.log()
                assert "netloader.weights_dirty=true" in client.log()
                assert "Duplicate layer name" not in client.log()
