"""Libraries that vllm-ascend needs beyond the simulated CANN. Compiled once, by content.

`libatb.so` (NNAL) is linked to one of torch_npu's libraries. Here it is empty: each of the symbols
that are looked up in it says its name and aborts.
"""

import hashlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache" / "ascend"

SYMBOL = """void {name}(void) {{
    fprintf(stderr, "not simulated: {name}\\n");
    abort();
}}
"""

CONTEXT = """#include <cstddef>
#include <cstdio>
#include <cstdlib>
extern "C" int aclrtCreateContext(void **, int) {
    fprintf(stderr, "not simulated: aclrtCreateContext\\n");
    abort();
}
extern "C" int aclrtMemGetAllocationGranularity(void *, int, size_t *granularity) {
    *granularity = 2u << 20;
    return 0;
}
"""
"""Two calls that the sleep-mode allocator is linked with and the simulator does not have."""


def torch_npu_folder() -> Path:
    """Where torch_npu is installed; it is not imported."""
    spec = find_spec("torch_npu")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def atb() -> Path:
    """The folder of `libatb.so`."""
    plugin = torch_npu_folder() / "lib" / "libop_plugin_atb.so"
    listed = _output("nm", "-D", "--undefined-only", str(plugin)).splitlines()
    names = [line.split()[-1] for line in listed if " _ZN3atb" in line]
    source = "#include <stdio.h>\n#include <stdlib.h>\n" + "".join(
        SYMBOL.format(name=name) for name in names
    )
    return _compiled("libatb.so", source, "gcc", "-shared", "-fPIC", suffix=".c")


def sleep_allocator(allocator: Path, simulator: Path) -> Path:
    """The folder of a `vllm_ascend_C` that has the allocator of sleep mode and nothing else.

    Args:
        allocator: `csrc/camem_allocator.cpp` of vllm-ascend.
        simulator: The folder of the simulated CANN libraries.
    """
    include = torch_npu_folder() / "include"
    acl = include / "third_party" / "acl" / "inc"  # there with torch_npu 2.10
    headers = (include, acl, sysconfig.get_paths()["include"])
    return _compiled(
        "vllm_ascend_C.so", CONTEXT, "g++", "-O1", "-shared", "-fPIC", "-std=c++17",
        *(f"-I{folder}" for folder in headers), suffix=".cpp",
        after=(str(allocator), f"-L{simulator}", "-lascendcl"),
    )  # fmt: skip


def _compiled(
    name: str, source: str, *command: str, suffix: str, after: tuple[str, ...] = ()
) -> Path:
    key = hashlib.sha256(" ".join((sys.version, source, *command, *after)).encode())
    folder = CACHE / f"lib-{key.hexdigest()[:16]}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=CACHE))
        try:
            (work / f"source{suffix}").write_text(source)
            _output(*command, "-o", str(work / name), str(work / f"source{suffix}"), *after)
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
