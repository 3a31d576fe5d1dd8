"""For Ray Serve LLM: download no weights that a running server gives.

Ray downloads a model from a bucket before it starts the engine, whatever the load format is, except
for three of its own. `WithoutWeights` is a `callback_class` of its `LLMConfig`. Only Ray imports
this module; its interface for callbacks is that of Ray 2.60.
"""

import asyncio
import contextlib
from typing import Final

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.common.utils.download_utils import NodeModelDownloadable

from netloader.discovery.base import DiscoveryError
from netloader.discovery.urls import registry_of

ANSWER_S: Final = 5.0
"""How long the registry may take to answer."""


class WithoutWeights(CallbackBase):
    """Leave out the safetensors files where the registry names a server.

    Its argument `registry`, as in `SOURCE`, must be one that only servers of this model use. While
    it names nobody, or gives no answer, everything is downloaded: this replica will be the first.
    """

    async def on_before_node_init(self) -> None:
        """Decide, before Ray downloads on every node of the replica."""
        registry = registry_of(self.kwargs["registry"])
        with contextlib.suppress(DiscoveryError, OSError):
            found = await asyncio.to_thread(registry.every, ANSWER_S)
            if found.candidates:
                self.ctx.worker_node_download_model = NodeModelDownloadable.EXCLUDE_SAFETENSORS
