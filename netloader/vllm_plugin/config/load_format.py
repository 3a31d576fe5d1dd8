"""The name by which vLLM knows netloader."""

LOAD_FORMAT = "netloader"
