"""Multigrid in depth: a network's layers as time steps, the levels over them, and the solve that every runtime runs.

settings       how a step iterates                     -> one plain value: iterations, relaxation, cycle ...
layers         Capture                                 -> stem, layers in order (time steps, transitions), head
hierarchy      which layers are transitions            -> the levels: steps, and the intervals that ranks share
solver         start, levels, a map for each step      -> values at the C-points; forward and adjoint alike
propagators    the layers, values of one step          -> those maps, and their transposes
convergence    residual norms of the solves            -> what a network's ``history`` holds
"""

from .convergence import Convergence, StepNorms
from .hierarchy import Hierarchy, Level, LevelStep, make_hierarchy
from .layers import Layer, Layers, find_layers
from .propagators import Adjoint, Forward, TimeStep
from .settings import Cycle, Relaxation, Settings
from .solver import Solution, solve

__all__ = [
    "Adjoint",
    "Convergence",
    "Cycle",
    "Forward",
    "Hierarchy",
    "Layer",
    "Layers",
    "Level",
    "LevelStep",
    "Relaxation",
    "Settings",
    "Solution",
    "StepNorms",
    "TimeStep",
    "find_layers",
    "make_hierarchy",
    "solve",
]
