"""What we claim, measured: one folder an experiment, each a command `python -m benchmarks.<folder>`."""
