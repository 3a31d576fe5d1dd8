"""The clock: monotonic seconds, never wall-clock time. The only module that imports `time`."""

import time

monotonic = time.monotonic
