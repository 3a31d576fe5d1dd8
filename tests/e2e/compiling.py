"""For engines that compile, of a fork server that otherwise spares them that.

An engine imports it as `worker_extension_cls`, before its worker makes a model.
"""

import torch._dynamo.config

torch._dynamo.config.disable = False


class Compiling:
    """Adds nothing to a worker."""
