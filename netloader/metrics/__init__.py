"""Metrics for Prometheus, made of log records. Needs prometheus_client, which is optional."""
