"""Compile the simulated CANN libraries. Unchanged sources are compiled once.

``python -m tests.ascend_sim.build`` prints the folder of the libraries and nothing else on
stdout, so that ``LD_LIBRARY_PATH=$(python -m tests.ascend_sim.build)`` works.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache" / "ascend_sim"

# Every library with those it is linked to, which come first. The five without a folder of their
# own are empty: libtorch_npu.so names them, and nothing that is simulated is looked up in them.
LIBRARIES = {
    "ascendcl": (),
    "hccl": ("ascendcl",),
    "opapi": ("ascendcl",),
    "acl_op_compiler": ("ascendcl",),
    "ge_runner": ("ascendcl",),
    "graph": ("ascendcl",),
    "acl_tdt_channel": ("ascendcl",),
    "hcomm": ("ascendcl", "hccl"),
}

COMPILER = "gcc"
COMPILE = ("-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden")
SHARE = ("-fPIC", "-shared", "-pthread")
# A library finds the others beside itself, and fails here, not later, when a symbol is missing.
LINK = ("-Wl,--no-undefined", "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN")
FLAGS = (*COMPILE, *SHARE, *LINK)


class BuildError(Exception):
    """The simulator cannot be built here; the text says why."""


def _sources(library: str) -> list[Path]:
    return sorted((HERE / library).glob("*.c"))


def _digest() -> str:
    """Name the sources, the flags and this file by their content."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    files = [HERE / "build.py", *HERE.rglob("*.[ch]")]
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"\n{path.relative_to(HERE)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _compile(library: str, folder: Path) -> None:
    target = folder / f"lib{library}.so"
    sources = [str(path) for path in _sources(library)] or ["-x", "c", "/dev/null", "-x", "none"]
    needed = [f"-l{name}" for name in LIBRARIES[library]]
    command = [COMPILER, *FLAGS, f"-Wl,-soname,{target.name}", "-o", str(target), *sources]
    done = subprocess.run(
        [*command, f"-L{folder}", *needed, "-lm"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildError(f"{target.name} does not compile:\n{done.stderr}")


def build(into: Path) -> Path:
    """Compile what is missing below ``into``; the answer is the folder of the libraries."""
    folder = into / _digest()
    if folder.is_dir():
        return folder
    if shutil.which(COMPILER) is None:
        raise BuildError(f"The simulator of CANN is written in C, and {COMPILER} is not here.")
    into.mkdir(parents=True, exist_ok=True)
    # Another process may build at the same time: the folder appears complete, or not at all.
    work = Path(tempfile.mkdtemp(dir=into, prefix="building-"))
    try:
        for library in LIBRARIES:
            _compile(library, work)
        work.chmod(0o755)
        try:
            work.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{build(CACHE)}\n")
    except BuildError as error:
        sys.exit(str(error))
