"""Layers solved for by multigrid over several ranks: each owns consecutive layers, all run one program.

In reading order::

    distribution    LayerParallel, mesh -> this rank's module: the composition
    partition       which rank owns which layers, and which contexts others read
    spmd            values that are on one rank each, and the program that all ranks run on them
    step            a rank's share of one training step, forward and adjoint
    stage           the module that a rank gets
"""

from .distribution import distribute_layers
from .stage import LayerStage

__all__ = ["LayerStage", "distribute_layers"]
