"""The simulated runtime as a whole: complete for torch_npu; what it lacks aborts by name."""

import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.ascend_sim import build as simulator_build
from tests.ascend_sim.probe import run


def test_an_operator_without_a_kernel_aborts_by_name() -> None:
    ran = run("import torch, torch_npu; torch.arange(5).to('npu').cumsum(0)")
    assert ran.code == -6
    assert "is not simulated: aborting" in ran.errors
    assert "umsum" in ran.errors


def test_the_trace_names_calls_bytes_streams_and_devices() -> None:
    ran = run(
        """
        import torch, torch_npu
        torch.npu.set_device(1)
        pinned = torch.ones(1000, dtype=torch.uint8).pin_memory()
        pinned.to('npu', non_blocking=True).cpu()
        """
    )
    assert ran.code == 0, ran.errors
    lines = [line.split(maxsplit=4) for line in ran.trace]
    assert all(float(seconds) > 0 and int(pid) > 0 for seconds, pid, *_ in lines)
    copies = [details for _, _, _, call, details in lines if call == "aclrtMemcpyAsync"]
    assert len(copies) == 1
    assert "kind=h2d bytes=1000 " in copies[0]
    assert "device=1 pageable=0" in copies[0]


@pytest.mark.parametrize("queue", ["0", "1"])
def test_a_process_may_leave_with_work_pending(queue: str) -> None:
    ran = run(
        """
        import sys, torch, torch_npu
        pinned = torch.ones(64 << 20, dtype=torch.uint8).pin_memory()
        stream = torch.npu.Stream()
        with torch.npu.stream(stream):
            for _ in range(8):
                copy = pinned.to("npu", non_blocking=True)
        print(stream.query())
        sys.exit(3)
        """,
        TASK_QUEUE_ENABLE=queue,
    )
    assert (ran.code, ran.said[-1]) == (3, "False"), ran.errors


def test_every_symbol_that_torch_npu_is_linked_with_is_there() -> None:
    spec = find_spec("torch_npu")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    names = ("libtorch_npu.so", "libtensorpipe.so", "libnpu_profiler.so", "_C*.so")
    linked = [path for name in names for path in package.rglob(name)]
    wanted = {
        name
        for path in linked
        for name in symbols("--undefined-only", path)
        if name.startswith(("acl", "rt", "Msprof", "Hccl"))
    }
    folder = simulator_build.build(simulator_build.CACHE)
    there = {name for path in folder.glob("*.so") for name in symbols("--defined-only", path)}
    assert len(wanted) > 70  # 79 in torch_npu 2.10, 84 in 2.13
    assert wanted <= there


def symbols(which: str, library: Path) -> set[str]:
    listed = subprocess.run(
        ["nm", "-D", which, str(library)], capture_output=True, text=True, check=True
    )
    return {line.split()[-1].split("@")[0] for line in listed.stdout.splitlines()}


def test_unchanged_sources_are_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = simulator_build.build(tmp_path)
    monkeypatch.setattr(simulator_build, "COMPILER", "no-such-compiler")
    assert simulator_build.build(tmp_path) == folder
    assert [entry.name for entry in tmp_path.iterdir()] == [folder.name]


def test_a_missing_compiler_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulator_build, "COMPILER", "no-such-compiler")
    with pytest.raises(simulator_build.BuildError, match="no-such-compiler is not here"):
        simulator_build.build(tmp_path)
