"""What must be the same on two hosts for one to use what the other computed.

Compared before a byte is received. Reads metadata and the kernel's lists; imports nothing that
would have to be loaded for it.
"""

import platform
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from netloader.files.rules import FilesError
from netloader.fsm.identity import Difference, Identity
from netloader.fsm.messages import Description

FORMAT: Final = "1"
"""How hints and caches are written; another one is another format."""
CPU_FLAGS: Final = "cpu_flags"
CPUINFO: Final = Path("/proc/cpuinfo")
FLAGS: Final = ("flags", "Features")
"""How the kernel calls the list, on x86 and on Arm."""
MOST_NAMED: Final = 3
"""Fields that a refusal names."""


def of_vllm() -> dict[str, str]:
    """The fields of what vLLM describes in JSON: our format, and its version."""
    return {"caches_format": FORMAT, "vllm": _installed("vllm")}


def of_machine() -> dict[str, str]:
    """The fields of compiled code as well: what reads it, and what it runs on.

    Inductor compiles for exactly this CPU (`-march=native`), against headers whose paths are part
    of its keys, and pickles with this Python.
    """
    torch = find_spec("torch")
    return {
        **of_vllm(),
        "torch": _installed("torch"),
        "python": f"{platform.python_implementation()} {sys.version_info[0]}.{sys.version_info[1]}",
        "libc": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
        CPU_FLAGS: cpu_flags(CPUINFO),
        "installed_in": str(Path(torch.origin).parents[1]) if torch and torch.origin else "",
    }


def cpu_flags(cpuinfo: Path) -> str:
    """The instruction sets of this CPU, as the kernel names them, in the order of the alphabet."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in FLAGS:
            return " ".join(sorted(value.split()))
    return platform.processor()


@cache
def _installed(package: str) -> str:
    """The version of what an import would load, whichever distribution it is from.

    To look through all distributions takes 0.1 s.
    """
    with suppress(PackageNotFoundError):
        return version(package)
    for name in packages_distributions().get(package, ()):
        with suppress(PackageNotFoundError):
            return version(name)
    return "not installed"


def check(mine: Identity, told: Description) -> None:
    """Refuse what a source computed under other conditions.

    Raises:
        FilesError: it names the first fields that differ, with both values.
    """
    found = mine.differences(told.identity)
    if not found:
        return
    named = "; ".join(str(_shortened(each)) for each in found[:MOST_NAMED])
    more = f"; and {len(found) - MOST_NAMED} more fields" if len(found) > MOST_NAMED else ""
    raise FilesError(f"the {mine.role} of the source fit other conditions: {named}{more}")


def _shortened(difference: Difference) -> Difference:
    """A difference between lists of flags with those flags alone that only one side has."""
    if difference.field != CPU_FLAGS:
        return difference
    mine, theirs = {*difference.mine.split()}, {*difference.theirs.split()}
    only_mine = " ".join(sorted(mine - theirs)) or "no others"
    only_theirs = " ".join(sorted(theirs - mine)) or "no others"
    return Difference(difference.field, only_mine, only_theirs, difference.remedy)
