"""Have an engine on a CPU use the processed layout. Imported as `worker_extension_cls` only.

A model whose kernels hide nothing could be offered in that layout on a CPU as well. netloader does
not do that, as they hide something on most CPUs. vLLM imports this before it loads a model.
"""

from netloader.vllm_plugin.load import processed

processed.EXCLUDED = frozenset()


class Allowed:
    """No more methods for a worker."""
