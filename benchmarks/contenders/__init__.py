"""All that are compared. One more is a class with the methods of `Contender`, and a line here."""

from benchmarks.contenders.base import Contender
from benchmarks.contenders.copies import Memcpy, ReadFromProcess
from benchmarks.contenders.engines import Mooncake, Nixl
from benchmarks.contenders.files import all_files
from benchmarks.contenders.gloo import BareGloo
from benchmarks.contenders.own import all_own
from benchmarks.contenders.sockets import PlainSocket

QUICK = ("plain socket", "memcpy", "process_vm_readv", "safetensors, warm")
"""Those that `make bench-quick` compares netloader with."""


def contenders() -> tuple[Contender, ...]:
    """All of them, in the order of the report."""
    return (
        Memcpy(),
        ReadFromProcess(),
        PlainSocket(),
        PlainSocket("reno"),
        PlainSocket("cubic"),
        BareGloo(),
        *all_own(),
        *all_files(),
        Nixl(),
        Mooncake(),
    )


def is_quick(contender: Contender) -> bool:
    """Whether `make bench-quick` has time for it."""
    own = contender.name.startswith(("netloader tcp", "netloader shm"))
    return own or contender.name in QUICK
