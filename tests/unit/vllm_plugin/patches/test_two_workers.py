"""Two of vLLM's workers in one process, each in a thread of its own, do not affect each other."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from netloader.config import Endpoint
from netloader.io import fill
from netloader.vllm_plugin.patches import worker_methods
from netloader.vllm_plugin.patches.worker_methods import worker_of
from netloader.vllm_plugin.serve.worker import current_worker, this_worker
from tests.unit.io.helpers import asking, contents, eventually, our_threads
from tests.unit.vllm_plugin.helpers import Model, endpoint_of, identity, reload, serve
from tests.unit.vllm_plugin.patches.test_worker_methods import PATIENCE_S

SERVED = "served"


class Loading(Model):
    """A model that reads a checkpoint itself; what is to be done `meanwhile` is done then."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def load_weights(self, source: nn.Module) -> None:
        """Read the weights of another model."""
        self.meanwhile()
        reload(self, source)


class VllmWorker:
    """Loads a model, and changes its weights later. The methods that vLLM calls have its names."""

    def __init__(self, seed: int, together: threading.Barrier) -> None:
        self.model = Loading(seed)
        self.offered: list[nn.Module] = []
        self._together = together

    def load_model(self) -> None:
        self._together.wait(PATIENCE_S)
        serve(self.model)
        warm_up = this_worker().warm_up
        warm_up.expect()
        warm_up.offer(self.model, torch.device("cuda:0"), self.offered.append)
        self._together.wait(PATIENCE_S)

    def compile_or_warm_up_model(self) -> None:
        self.model.meanwhile()

    def reload_weights(self) -> None:
        self.model.meanwhile()

    def shutdown(self) -> None:
        self.model.meanwhile()

    def endpoint(self) -> Endpoint:
        (server,) = worker_of(self).servers
        return endpoint_of(server)

    def ask(self) -> str:
        """What a client of this worker is told: `served`, or why it is not."""
        attempt = fill(Model(9), [self.endpoint()], identity(), asking()).attempts[-1]
        return attempt.detail or SERVED


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def workers() -> Iterator[tuple[VllmWorker, VllmWorker]]:
    """Two of one class, loaded at the same time."""
    kind = type("Worker", (VllmWorker,), {})
    worker_methods.install(kind)
    together, before = threading.Barrier(2), our_threads()
    pair = kind(1, together), kind(2, together)
    threads = [in_thread(worker.load_model) for worker in pair]
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    yield pair
    for worker in pair:
        for server in worker_of(worker).servers:
            server.close()
    assert eventually(lambda: our_threads() <= before), our_threads() - before


def test_each_serves_its_own_model_and_the_thread_keeps_none_of_them(
    workers: tuple[VllmWorker, VllmWorker],
) -> None:
    got, mine = [], current_worker()
    for worker in workers:
        twin = Model(9)
        assert fill(twin, [worker.endpoint()], identity(), asking()).ok
        got.append(contents(twin))
    assert got == [contents(Model(1)), contents(Model(2))]
    assert current_worker() is mine
    assert mine not in [worker_of(worker) for worker in workers]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda worker: worker.reload_weights(), "reload_weights changes the weights"),
        (lambda worker: worker.model.load_weights(Model(3)), "load_weights changes the weights"),
        (lambda worker: worker.shutdown(), "the instance shuts down"),
    ],
    ids=["worker", "model", "end"],
)
@pytest.mark.parametrize("first", [True, False], ids=["of the first", "of the second"])
def test_a_change_of_one_leaves_the_other_on_offer(
    workers: tuple[VllmWorker, VllmWorker],
    change: Callable[[VllmWorker], None],
    why: str,
    first: bool,
) -> None:
    changed, other = workers if first else workers[::-1]
    told: list[tuple[str, str]] = []
    changed.model.meanwhile = lambda: told.append((changed.ask(), other.ask()))
    in_thread(lambda: change(changed)).join(PATIENCE_S)
    assert told == [(why, SERVED)]


def test_offers_wait_for_the_engine_of_their_own_worker(
    workers: tuple[VllmWorker, VllmWorker],
) -> None:
    first, second = workers
    first.compile_or_warm_up_model()
    assert (first.offered, second.offered) == ([first.model], [])
    second.compile_or_warm_up_model()
    assert second.offered == [second.model]
