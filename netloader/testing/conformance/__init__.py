"""Whether a transport keeps the contract of `netloader.io.transports.base`.

Each check has a name, makes its own sessions, and has a time limit for each call, so a transport
that hangs fails and does not hang the program. `docs/embed/transport.md` has an example.
"""

from collections.abc import Callable, Iterable, Mapping

import torch

from netloader.io.device import CPU
from netloader.io.transports.base import Transport
from netloader.testing.conformance.bytes_checks import BYTES_CHECKS
from netloader.testing.conformance.calls import Observed
from netloader.testing.conformance.end_checks import END_CHECKS
from netloader.testing.conformance.ends import Subject
from netloader.testing.conformance.process_checks import PROCESS_CHECKS, imported

Check = Callable[[Subject], None]
IN_ONE_PROCESS: Mapping[str, Check] = {**BYTES_CHECKS, **END_CHECKS}
"""The checks with both ends in this process, by name, in the order in which they run."""
IN_TWO_PROCESSES: Mapping[str, Check] = PROCESS_CHECKS
"""Those with one end in a process that imports the transport again."""
STALL_S = 1.0


class TransportCheckError(AssertionError):
    """A transport does not keep the contract. `failures`: what was seen, by name of the check."""

    def __init__(self, transport: str, failures: Mapping[str, str]) -> None:
        self.failures = dict(failures)
        lines = "".join(f"\n  {name}: {seen}" for name, seen in failures.items())
        super().__init__(f"the transport {transport} fails {len(failures)} checks:{lines}")


def check_transport(
    transport: Transport | str,
    *,
    checks: Iterable[str] = (),
    device: torch.device = CPU,
    stall_s: float = STALL_S,
) -> tuple[str, ...]:
    """Run the checks on a transport; returns the names of those that it passed.

    `transport` is the object, or "module:attribute" when another process can import it: then the
    checks with two processes run as well. For a transport that cannot have both ends in one
    process, give `checks=IN_TWO_PROCESSES`. `checks` are names; without any, all run that can.
    `device` is where the tensors are, and `stall_s` the stall deadline: raise it for a transport
    that needs longer to begin.

    Takes about a minute, and memory for some 200 MB of tensors. Needs Linux. Runs nothing in
    parallel; other threads of the program should not open and close files meanwhile.

    Raises:
        TransportCheckError: some failed. All others have run.
        ValueError: there is no such check, or the transport cannot be used here.
        TypeError: it is no transport.
    """
    where = transport if isinstance(transport, str) else ""
    subject = Subject(_found(transport), device, where, stall_s)
    all_checks = {**IN_ONE_PROCESS, **(IN_TWO_PROCESSES if where else {})}
    chosen = tuple(checks) or tuple(all_checks)
    if unknown := [name for name in chosen if name not in all_checks]:
        hint = "" if where else "; those with two processes need 'module:attribute'"
        raise ValueError(f"no check is named {unknown[0]!r}{hint}")
    failures: dict[str, str] = {}
    for name in chosen:
        try:
            all_checks[name](subject)
        except Observed as observed:
            failures[name] = str(observed)
        except Exception as error:  # noqa: BLE001 - the transport's code runs here
            failures[name] = f"{type(error).__name__}: {error}"
    if failures:
        raise TransportCheckError(subject.transport.name, failures)
    return chosen


def _found(transport: Transport | str) -> Transport:
    found = imported(transport) if isinstance(transport, str) else transport
    if not isinstance(found, Transport):
        raise TypeError(f"{found!r} has not all members of a Transport")
    if why := found.obstacle():
        raise ValueError(f"the transport {found.name} cannot be used here: {why}")
    return found


__all__ = [
    "IN_ONE_PROCESS",
    "IN_TWO_PROCESSES",
    "Check",
    "Subject",
    "TransportCheckError",
    "check_transport",
]
