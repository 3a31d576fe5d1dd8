"""The name below which the plugin logs."""

LOG_BASE = "vllm.netloader"
"""vLLM shows what is logged below `vllm`, and nothing else."""
