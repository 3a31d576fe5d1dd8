"""netloader: start an LLM serving instance from the weights of one that already runs.

`netloader.io` serves and fills models, `netloader.fsm` holds the protocol machines, and
`netloader.vllm_plugin` makes them vLLM's load format `netloader`.
"""

__version__ = "0.1.0"
