"""A PararealModule run in one process, its segments at the same time on one GPU or on several.

In reading order:

    module           PararealModule -> LocalModule, which has its parameters and its function
    streams          the network's graph -> a runner that calls each node on the stream of its segment
    stacking         segments of one structure -> one batched call
    cuda_graph       a function of tensors -> its forward and its backward as one CUDA graph each
    capture_checks   a network, inputs -> what in it no CUDA graph can hold, before a capture
    graphed_network  a network, inputs -> CUDA graphs of all of it, or of every part
"""

from .module import LocalModule, capture_graphs, run_local
from .stacking import Stack, stacks_of

__all__ = ["LocalModule", "Stack", "capture_graphs", "run_local", "stacks_of"]
