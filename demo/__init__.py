"""The demo: one vLLM server starts from the weights of another. Run it with `make demo`."""
