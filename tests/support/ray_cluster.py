"""A real Ray cluster on this machine, for the time of a test; skipped where Ray is not there.

Ray is installed beside the environment, by requirements/ray.txt.
"""

import contextlib
import importlib
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".cache" / "ray"


def environment() -> dict[str, str]:
    """What a process of a cluster needs: Ray, netloader, a token; nothing is sent elsewhere."""
    given = os.environ.get("PYTHONPATH")
    behind = [given] if given else []
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*behind, str(ROOT), str(FOLDER)]),
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # by default 15: a busy machine would starve the actors
    }


@contextlib.contextmanager
def ray_module() -> Iterator[Any]:
    """The module `ray`, importable inside the block; the test is skipped where it is not there."""
    with (
        patch.object(sys, "path", [*sys.path, str(FOLDER)]),
        patch.dict(os.environ, environment()),
    ):
        try:
            ray = importlib.import_module("ray")
        except (ImportError, OSError) as error:  # OSError: it is installed for another Python
            pytest.skip(f"ray of requirements/ray.txt cannot be imported: {error}")
        yield ray


@contextlib.contextmanager
def ray_cluster(cpus: int = 1) -> Iterator[Any]:
    """The module `ray`, while this process is part of a cluster of one node."""
    # The paths of sockets below it have at most 107 bytes.
    with (
        ray_module() as ray,
        tempfile.TemporaryDirectory(
            prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
        ) as folder,
    ):
        terminated = signal.getsignal(signal.SIGTERM)
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=80 << 20,
            _temp_dir=folder,
        )
        try:
            yield ray
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, terminated)  # Ray has one of its own, for good
