"""The converted network: a Plan and its new modules put together as a PararealModule, whose code is equation (3).

In reading order:

    parareal          adapters, segments and coarse maps as plain callables -> corrected outputs: the mathematics
    pieces            BlockChain, Plan -> the graphs of stem, context, segments and head
    equation          those and the coarse blocks -> the network's own graph, equation (3)
    emitter           BlockChain, Plan, adapters, coarse blocks -> PararealModule (``emit`` composes the files here)
    variant           the same network recorded at other sizes, cut by the same plan, over the same parameters
    interface_sizes   whether adapters and coarse blocks give the network's shapes at other sizes
    refitting         adapters and coarse blocks at other sizes, over the same weights
    state             a network -> its original's state, what was changed of it, and whether a checkpoint fits
    module            PararealModule: the parts, what is loaded and saved, and what else it can be run by
    parts             the emitted graph -> its parts, and the nodes of x_j, y_j, r_j and z_j
    iteration         a network, inputs, k -> k iterations of parareal, up to the original's output
    iteration_figure  a picture of the errors on the way there
    measurement       a network, inputs -> the seconds of every part
    local             a network -> the same in one process: on streams, with segments stacked, as CUDA graphs (a folder)
"""

from .emitter import emit
from .equation import write_equation
from .iteration import Iterates
from .measurement import measure_network
from .module import PararealModule
from .parareal import compose, correction, corrections, difference, iterate, iterations, messages, reduction
from .parts import EquationNodes, part_modules, parts_by_node, read_equation, read_parts
from .pieces import Pieces

__all__ = [
    "EquationNodes",
    "Iterates",
    "PararealModule",
    "Pieces",
    "compose",
    "correction",
    "corrections",
    "difference",
    "emit",
    "iterate",
    "iterations",
    "measure_network",
    "messages",
    "part_modules",
    "parts_by_node",
    "read_equation",
    "read_parts",
    "reduction",
    "write_equation",
]
