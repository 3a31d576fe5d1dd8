"""The one import of time. Law: seconds that only grow; never wall-clock."""

import time

monotonic = time.monotonic
