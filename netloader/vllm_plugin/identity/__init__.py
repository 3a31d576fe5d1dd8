"""Who this rank is: what must be equal between a server and its client."""
