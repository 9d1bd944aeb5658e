"""A parareal network beside the original that it was made from: how well both do, and how long they take.

The files, in reading order:

    outputs       outputs of both for the same inputs -> how far apart, and how good each is
    latency       both, called in turn -> medians of their times
    report        what was measured -> text and JSON
    measurement   both networks, batches -> the report: ``compare``, what ``pararealize evaluate`` prints
"""

from .measurement import compare
from .report import Comparison, Latency, Quality

__all__ = ["Comparison", "Latency", "Quality", "compare"]
