"""Step time and latency on two processes, against what the same machine does without layer parallelism."""
