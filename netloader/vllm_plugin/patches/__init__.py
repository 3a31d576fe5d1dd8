"""Every change that is made to vLLM's own code, and what differs between its versions."""
