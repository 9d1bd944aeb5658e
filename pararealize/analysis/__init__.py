"""Reading a captured network: where it can be cut, which blocks repeat, what these cost and what they see.

In reading order:

    flow        Capture -> Flow: the order of the state, what is context, and the points where one activation is alive
    signature   operations -> keys under which blocks are of one structure, or interchangeable
    finder      Flow -> BlockSpans: which stretches between cut points are the blocks that a person would name
    context     operations -> what they read from outside: masks, tables, parameters
    packing     blocks that hand on several values -> a graph with one tensor, which holds them, between its blocks
    space       a value -> Space, its shape without the batch and the axis of its channels
    blocks      Capture -> BlockChain: stem, blocks and head (``find_blocks`` composes the files above)
    bulk        BlockChain -> a sentence on the part that holds most of the work, and what keeps it whole
    addition    Flow -> its sums of two activations as x + f(x), or why they are none
    last_layer  a chain -> the layers at its blocks' ends whose output only adds to the stream
    residual    Flow -> Residuals: blocks of the form x + f(x), and chains of them
    inner_look  a block that is one call -> what it does inside, as it runs on fake tensors
    causality   Causality: on which side of its own position one axis is read; plain data
    cost        BlockChain -> Costs: counted on shapes, or measured in seconds
    operations  BlockChain, or a module -> every operation of a call, with its flops and bytes
    counter     a module -> the operations and written elements of one call, on fake tensors
    recurrence  recurrent layers -> the same operations with all steps in one, to be counted
    dry_run     a module -> a run forward and backward on stand-ins for its tensors
    timed_run   a module -> its part of training steps in a row, on copies of its tensors
    stopwatch   modules to run -> the median seconds of each, measured in turn
    fields      BlockChain -> Fields, the receptive fields, and Dependencies, what is causal (a folder)
"""

from .addition import Addition
from .blocks import Block, BlockChain, find_blocks
from .causality import Causality, Sides, causal_axes
from .cost import PER_ELEMENT, BlockCost, Costs, ModuleSeconds, count_costs, count_module, measure_costs, measure_module
from .flow import Flow, RefusedCut, flow_of
from .operations import ChainOperations, Operation, PartOperations, list_chain_operations, list_module_operations
from .residual import NotResidual, Residual, Residuals, chains_of, find_residuals, residual_of
from .space import Space

__all__ = [
    "PER_ELEMENT",
    "Addition",
    "Block",
    "BlockChain",
    "BlockCost",
    "Causality",
    "ChainOperations",
    "Costs",
    "Flow",
    "ModuleSeconds",
    "NotResidual",
    "Operation",
    "PartOperations",
    "RefusedCut",
    "Residual",
    "Residuals",
    "Sides",
    "Space",
    "causal_axes",
    "chains_of",
    "count_costs",
    "count_module",
    "find_blocks",
    "find_residuals",
    "flow_of",
    "list_chain_operations",
    "list_module_operations",
    "measure_costs",
    "measure_module",
    "residual_of",
]
