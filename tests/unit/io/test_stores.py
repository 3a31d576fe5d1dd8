"""What `serve` and `fill` take beside modules, and filling that goes on where it was stopped."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from netloader import (
    Endpoint,
    FileStore,
    HostStore,
    ModuleStore,
    Reason,
    WeightsError,
)
from netloader.io.store.base import Store
from tests.unit.io.drivers import fill
from tests.unit.io.helpers import (
    FAST,
    IDENTITY,
    KIB,
    asking,
    bytes_of,
    contents,
    eventually,
    module_of,
    random,
    sealed,
    serving,
)

pytestmark = pytest.mark.usefixtures("driver")


def model(seed: int) -> nn.Module:
    """Five segments of 64 KiB; `holes` is in three of them."""
    return module_of(
        a=random(64, 160, seed=seed),
        holes=random(1000, 64, seed=seed + 1)[:, ::2],
        z=random(9, 9, seed=seed + 2),
    )


def tensors(seed: int) -> dict[str, Tensor]:
    return model(seed).state_dict()


def stored(folder: Path, seed: int) -> Path:
    """A folder with the same in a file."""
    folder.mkdir()
    save_file({name: t.contiguous() for name, t in tensors(seed).items()}, folder / "m.safetensors")
    return folder


def held(store: Store) -> dict[str, bytes]:
    """What a store holds, by name."""
    assert isinstance(store, HostStore)
    return {name: bytes_of(tensor) for name, tensor in store.tensors().items()}


GIVEN: dict[str, Callable[[int], Any]] = {
    "module": model,
    "state dict": tensors,
    "pairs": lambda seed: [*tensors(seed).items()],
    "generator": lambda seed: (pair for pair in tensors(seed).items()),
    "items": lambda seed: tensors(seed).items(),
    "store": lambda seed: ModuleStore(tensors(seed).items()),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_a_server_takes_each_kind_of_weights(kind: str) -> None:
    target = model(9)
    with serving(GIVEN[kind](1)) as server:
        assert fill(target, server.endpoint, IDENTITY, asking()).ok

    assert contents(target) == contents(model(1))


@pytest.mark.parametrize("kind", GIVEN)
def test_a_client_takes_each_kind_of_weights_and_fills_them_in_place(kind: str) -> None:
    target = model(9)
    given: dict[str, Any] = {
        "module": target,
        "state dict": target.state_dict(),
        "pairs": [*target.state_dict().items()],
        "generator": (pair for pair in target.state_dict().items()),
        "items": target.state_dict().items(),
        "store": ModuleStore.of(target),
    }
    with serving(model(1)) as server:
        assert fill(given[kind], server.endpoint, IDENTITY, asking()).ok

    assert contents(target) == contents(model(1))


@pytest.mark.parametrize("transport", ["tcp", "shm", "gloo"])
def test_weights_pass_from_files_to_host_memory_to_a_model_to_files(
    tmp_path: Path, transport: str
) -> None:
    source = FileStore.open(stored(tmp_path / "from", 1), ModuleStore.of(model(1)).manifest)
    host = HostStore(source.manifest)
    target = model(9)
    made = FileStore.create(tmp_path / "to", source.manifest, file_bytes=50 * KIB)
    for giving, taking in ((source, host), (host, target), (target, made)):
        with serving(giving, transports=(transport,)) as server:
            assert fill(taking, server.endpoint, IDENTITY, asking(transport)).ok

    assert held(host) == contents(target) == contents(model(1))
    files = sorted((tmp_path / "to").glob("*.safetensors"))
    assert len(files) == 3
    written = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert {name: bytes_of(tensor) for name, tensor in written.items()} == contents(model(1))


class Counting(nn.Module):
    """A module with something beside tensors."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("w", random(100, seed=seed))
        self.steps = seed

    def get_extra_state(self) -> int:
        return self.steps

    def set_extra_state(self, state: int) -> None:
        self.steps = state


def test_host_memory_keeps_what_travels_beside_tensors() -> None:
    source, host, target = Counting(1), HostStore(ModuleStore.of(Counting(2)).manifest), Counting(3)
    for giving, taking in ((source, host), (host, target)):
        with serving(giving) as server:
            assert fill(taking, server.endpoint, IDENTITY, asking()).ok

    assert target.steps == 1
    assert contents(target) == contents(source)


def test_a_state_dict_that_changes_while_it_is_served_is_served_as_it_is_then() -> None:
    given = tensors(1)
    with serving(given) as server:
        sealed(server)
        given["a"].copy_(model(5).get_parameter("a"))
        given["z"] = model(5).get_parameter("z").clone() + 1
        target = model(9)
        patient = asking(deadlines=replace(FAST, queue_s=20))
        assert fill(target, server.endpoint, IDENTITY, patient).ok

    assert contents(target) == {name: bytes_of(tensor) for name, tensor in given.items()}


def test_files_that_are_only_read_are_not_filled(tmp_path: Path) -> None:
    with (
        serving(model(1)) as server,
        pytest.raises(WeightsError, match=r"only read; fill a new folder: FileStore\.create"),
    ):
        fill(FileStore.open(stored(tmp_path / "m", 9)), server.endpoint, IDENTITY, asking())


def test_a_fill_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    store = FileStore.create(tmp_path / "made", ModuleStore.of(model(1)).manifest)
    assert not fill(store, [], IDENTITY, asking()).ok
    store.close()

    assert [*tmp_path.iterdir()] == []


# -- going on ------------------------------------------------------------------------------------


class Token:
    """Is set from a progress callback, which then waits until `over`."""

    def __init__(self, nbytes: int, over: Callable[[], bool]) -> None:
        self._nbytes = nbytes
        self._over = over
        self._set = False

    def report(self, done: int, total: int) -> None:
        del total
        if done >= self._nbytes and not self._set:
            self._set = True
            eventually(self._over)

    def is_set(self) -> bool:
        return self._set


def test_an_outcome_of_a_cancelled_fill_goes_on() -> None:
    source, target = (module_of(w=random(4 << 20, seed=s, dtype=torch.uint8)) for s in (1, 2))
    with serving(source) as server:
        where = sealed(server).endpoint
        token = Token(8 * 64 * KIB, lambda: not server.snapshot().models[0].clients)
        stopping = asking(lanes=1, cancel=token, report=token.report)
        first = fill(target, where, IDENTITY, stopping)
        assert (first.reason, first.weights_dirty) == (Reason.STOPPED, True)
        assert 8 * 64 * KIB <= first.nbytes < 4 << 20
        second = fill(target, where, IDENTITY, asking(), resume=first)

    assert second.ok
    assert contents(target) == contents(source)
    assert second.nbytes == 4 << 20
    assert second.attempts[0].nbytes == second.nbytes - first.nbytes


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(model(1)) as server:
        yield sealed(server).endpoint


@pytest.mark.parametrize("name", ["a", "holes", "z"])
def test_memory_that_was_changed_in_between_is_asked_for_again(
    endpoint: Endpoint, name: str
) -> None:
    # To believe the outcome would make wrong weights a success.
    target = model(9)
    first = fill(target, endpoint, IDENTITY, asking())
    tensor = target.get_parameter(name).data
    tensor[-1, -1] = 1.5

    second = fill(target, endpoint, IDENTITY, asking(), resume=first)

    assert second.ok
    assert contents(target) == contents(model(1))
    assert 0 < second.attempts[0].nbytes <= 64 * KIB, "one segment"


@pytest.mark.parametrize("kind", ["module", "store", "state dict"])
def test_what_is_whole_is_not_asked_for_again(endpoint: Endpoint, kind: str) -> None:
    target = model(9)
    given: dict[str, Any] = {
        "module": target,
        "store": HostStore(ModuleStore.of(target).manifest),
        "state dict": target.state_dict(),
    }
    first = fill(given[kind], endpoint, IDENTITY, asking())
    second = fill(given[kind], endpoint, IDENTITY, asking(), resume=first)

    assert second.ok
    assert (second.nbytes, second.attempts[0].nbytes) == (first.nbytes, 0)


def test_an_outcome_goes_on_with_other_weights_from_the_beginning(endpoint: Endpoint) -> None:
    target = model(9)
    first = fill(target, endpoint, IDENTITY, asking())
    with serving(model(5)) as server:
        second = fill(target, server.endpoint, IDENTITY, asking(), resume=first)

    assert second.ok
    assert second.attempts[0].nbytes == first.nbytes
    assert contents(target) == contents(model(5))


def test_an_outcome_of_another_model_counts_for_nothing(endpoint: Endpoint) -> None:
    with serving(module_of(w=random(99, seed=3)), {"model": "other"}) as server:
        other = fill(module_of(w=random(99)), server.endpoint, {"model": "other"}, asking())
    target = model(9)
    outcome = fill(target, endpoint, IDENTITY, asking(), resume=other)

    assert outcome.ok
    assert contents(target) == contents(model(1))


def test_what_was_held_and_may_be_dirty_stays_known(endpoint: Endpoint) -> None:
    target = model(9)
    first = replace(fill(target, endpoint, IDENTITY, asking()), weights_dirty=True)
    none = fill(target, [], IDENTITY, asking(), resume=first)

    assert (none.reason, none.weights_dirty) == (Reason.NO_SOURCE, True)
    assert none.progress == first.progress
    assert fill(target, endpoint, IDENTITY, asking(), resume=none).attempts[0].nbytes == 0


def test_a_fill_that_has_no_time_left_hashes_nothing(endpoint: Endpoint) -> None:
    target = model(9)
    first = fill(target, endpoint, IDENTITY, asking())
    outcome = fill(target, endpoint, IDENTITY, asking(timeout_s=0.0), resume=first)

    assert (outcome.reason, outcome.nbytes) == (Reason.DEADLINE_PASSED, 0)
