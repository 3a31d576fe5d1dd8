"""Have an engine on a CPU use the processed layout. Imported there only, as `worker_extension_cls`.

A model whose kernels hide nothing can be offered in that layout on a CPU as well; netloader does not
do so, as on most CPUs they hide something. vLLM imports this before it loads a model.
"""

from netloader.vllm_plugin.load import processed

processed.EXCLUDED = frozenset()


class Allowed:
    """No more methods for a worker."""
