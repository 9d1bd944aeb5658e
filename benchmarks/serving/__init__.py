"""Latency of requests that two ranks answer together, beside the original's in one process."""
