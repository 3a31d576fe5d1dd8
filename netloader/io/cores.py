"""How many threads can work at once: the cores this process may use, not those of the host."""

import os


def cores() -> int:
    """Cores that the calling thread, and a thread it starts, may run on; at least 1.

    Containers and engines bind processes to some cores of a host (`sched_getaffinity(2)`), some of
    them late, so ask when threads are about to be started. A limit of CPU time (`cpu.max` of
    cgroups) is not seen.
    """
    return len(os.sched_getaffinity(0))


def default_lanes() -> int:
    """Data connections of one transfer over tcp, unless somebody says otherwise.

    One lane receives and hashes in turn; with two cores a second one fills the gaps. Measured on
    two cores that server and client share, into fresh memory: two lanes 1.4 times as fast as one.
    """
    return min(2, cores())
