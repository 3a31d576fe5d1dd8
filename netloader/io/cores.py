"""How many threads can work at once: the cores this process may use, not those of the host."""

import os


def cores() -> int:
    """Cores that the calling thread, and a thread it starts, may run on; at least 1.

    Containers and engines bind processes to some cores of a host (`sched_getaffinity(2)`), some of
    them late, so ask when threads are about to be started. A limit of CPU time (`cpu.max` of
    cgroups) is not seen.
    """
    return len(os.sched_getaffinity(0))
