"""The simulated CANN libraries. Law: for tests on machines without an NPU, and never elsewhere."""
