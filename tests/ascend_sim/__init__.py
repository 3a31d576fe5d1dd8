"""The simulated CANN libraries. For tests on machines without an NPU, and never elsewhere."""
