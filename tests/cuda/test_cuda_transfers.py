"""Tensors on a GPU as a program that embeds netloader has them: `make test-cuda`.

Run on a host with a GPU and a CUDA build of torch. Nothing here has a simulator: what a machine
without a GPU can tell of NCCL is in tests/unit/io/transports/test_nccl.py.
"""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import pytest
import torch
from torch import Tensor, nn

from netloader.config import Endpoint
from netloader.fsm.reasons import Reason
from netloader.io import fill, serve
from netloader.io.device import side_stream
from netloader.io.publishing import ServerOptions
from tests.unit.io.helpers import IDENTITY, MIB, asking, module_of, random, sealed

pytestmark = pytest.mark.timeout(300)
START_S = 120.0
"""For a process to start, with torch and a context on its device."""
HOST_TRANSPORTS = ("tcp", "gloo")
"""Those that go through memory of the host."""


def weights(seed: int, device: str = "cuda:0") -> nn.Module:
    """Every kind of layout: dense, with holes, transposed, tiny, empty, shared, and a large one."""
    base = random(90, 200, seed=seed).to(device)
    large = random(5 * MIB, seed=seed + 1).to(device)
    module = module_of(
        dense=random(300, 100, seed=seed + 2).to(device),
        holes=base[:, 10:150:3],
        transposed=random(30, 70, seed=seed + 3).to(device).t(),
        scalar=random(seed=seed + 4).to(device),
        empty=torch.empty(0, 8, device=device),
        bf16=random(1000, seed=seed + 5, dtype=torch.bfloat16).to(device),
        flags=random(17, seed=seed + 6, dtype=torch.bool).to(device),
        large=large,
    )
    module.register_parameter("tied", module.get_parameter("dense"))
    return module


def held(module: nn.Module) -> dict[str, Tensor]:
    """The bytes of its tensors, copied to the host: some are NaN."""
    tensors = module.state_dict().items()
    return {name: t.detach().cpu().reshape(-1).view(torch.uint8) for name, t in tensors}


def assert_same(one: nn.Module, other: nn.Module) -> None:
    wanted = held(other)
    for name, tensor in held(one).items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("transport", HOST_TRANSPORTS)
def test_every_layout_arrives_in_place(transport: str) -> None:
    source, target = weights(1), weights(2)
    places = {name: tensor.data_ptr() for name, tensor in target.state_dict().items()}
    with sealed(serve(source, IDENTITY)) as server:
        outcome = fill(target, [server.endpoint], IDENTITY, asking(transport))

    assert outcome.ok, outcome.history()
    assert_same(target, source)
    assert {name: tensor.data_ptr() for name, tensor in target.state_dict().items()} == places


@pytest.mark.parametrize(("giver", "taker"), [("cpu", "cuda:0"), ("cuda:0", "cpu")])
def test_a_gpu_and_the_memory_of_a_host_serve_each_other(giver: str, taker: str) -> None:
    source, target = weights(1, giver), weights(2, taker)
    with sealed(serve(source, IDENTITY)) as server:
        outcome = fill(target, [server.endpoint], IDENTITY, asking("tcp"))

    assert outcome.ok, outcome.history()
    assert_same(target, source)


def test_bytes_that_changed_on_the_gpu_after_they_were_published_are_refused() -> None:
    source, target = weights(1), weights(2)
    with sealed(serve(source, IDENTITY)) as server:
        source.get_parameter("large").data[12_345] += 1  # through `.data`, which torch counts not
        outcome = fill(target, [server.endpoint], IDENTITY, asking("tcp"))

    assert not outcome.ok
    assert outcome.attempts[0].reason is Reason.DIGEST_MISMATCH


def test_a_transfer_is_right_while_the_program_computes_on_its_own_stream() -> None:
    source, target = weights(1), weights(2)
    matrix = torch.ones(2048, 2048, device="cuda:0") / 2048
    product = matrix

    def compute(done: int, total: int) -> None:
        nonlocal product
        for _ in range(100):
            product = product @ matrix

    with sealed(serve(source, IDENTITY)) as server:
        outcome = fill(target, [server.endpoint], IDENTITY, asking("tcp", report=compute))

    assert outcome.ok, outcome.history()
    assert_same(target, source)
    assert side_stream(torch.device("cuda:0")) != torch.cuda.default_stream(0)
    assert torch.allclose(product, matrix)


def serve_on(device: str, pipe: Connection) -> None:
    """Serve on a device of a process of its own, until the pipe closes."""
    torch.cuda.set_device(device)
    options = ServerOptions(transports=("nccl", *HOST_TRANSPORTS))
    with sealed(serve(weights(1, device), IDENTITY, options=options)) as server:
        pipe.send(server.endpoint.port)
        pipe.poll(None)


@contextmanager
def server_process(device: str) -> Iterator[Endpoint]:
    """A server in another process."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=serve_on, args=(device, far), daemon=True)
    process.start()
    far.close()
    try:
        assert near.poll(START_S)
        yield Endpoint("127.0.0.1", near.recv())
    finally:
        near.close()
        process.join(START_S)


@pytest.mark.parametrize("transport", HOST_TRANSPORTS)
def test_two_processes_on_one_card(transport: str) -> None:
    target = weights(2)
    with server_process("cuda:0") as source:
        outcome = fill(target, [source], IDENTITY, asking(transport))

    assert outcome.ok, outcome.history()
    assert_same(target, weights(1))


@pytest.mark.two_gpus
@pytest.mark.parametrize("transport", ["nccl", *HOST_TRANSPORTS])
def test_two_cards(transport: str) -> None:
    target = weights(2, "cuda:1")
    with server_process("cuda:0") as source:
        outcome = fill(target, [source], IDENTITY, asking(transport))

    assert outcome.ok, outcome.history()
    assert_same(target, weights(1))
