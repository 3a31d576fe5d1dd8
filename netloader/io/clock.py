"""The clock. The only module that imports `time`.

Whatever is measured or waited for is in monotonic seconds. Wall-clock time is only for what two
hosts compare.
"""

import time

monotonic = time.monotonic
unix_time = time.time
