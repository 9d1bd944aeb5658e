"""A PararealModule run in one process, its segments at the same time on one GPU or on several.

In reading order:

    module           PararealModule -> LocalModule, which has its parameters and its function
    streams          the network's graph -> a runner that calls each node on the stream of its segment
    stacking         segments of one structure -> one batched call
    cuda_graph       a function of tensors -> its forward and its backward as one CUDA graph each
    capture_checks   a network, inputs -> what in it no CUDA graph can hold, before a capture
    graphed_network  a network, inputs -> CUDA graphs of all of it, or of every part
    tensor_stamp     a module -> whether its tensors are where they were, at a cost that does not grow
    static_gradients parameters, where graphs write their gradients -> ``.grad``, likewise

A step or a forward pass in one graph, of any module:

    graphed_call       a network, a call -> static inputs, and what is captured of such calls
    graphed_step       a network, a loss, a batch -> forward, loss and backward in one graph
    graphed_inference  a network, a batch -> its forward pass in one graph

And a rank's part of a network that is distributed over several processes:

    graphed_stage      a stage -> its steps with every part as CUDA graphs, between the messages
"""

from .graphed_inference import GraphedInference, capture_inference
from .graphed_stage import GraphedStage, capture_stage
from .graphed_step import GraphedStep, capture_step
from .module import LocalModule, capture_graphs, run_local
from .stacking import Stack, stacks_of

__all__ = [
    "GraphedInference",
    "GraphedStage",
    "GraphedStep",
    "LocalModule",
    "Stack",
    "capture_graphs",
    "capture_inference",
    "capture_stage",
    "capture_step",
    "run_local",
    "stacks_of",
]
