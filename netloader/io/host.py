"""Which host this is, and how its addresses are written."""

import contextlib
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """A text that all processes of this host see, in any container; empty where there is none."""
    with contextlib.suppress(OSError):
        return BOOT_ID.read_text().strip()
    return ""


def unmapped(host: str) -> str:
    """An address as people write it: IPv4 that was mapped into IPv6 (RFC 4291) is IPv4 again."""
    return host.removeprefix("::ffff:")
