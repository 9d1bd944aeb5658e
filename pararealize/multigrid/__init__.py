"""Layer-parallel training: a network's forward and backward passes by multigrid iterations in depth.

module         nn.Module                               -> LayerParallel, a network like any other
pieces         a recording cut into layers             -> what runs it, over the network's own modules
autograd       the value before the first layer        -> the one behind the last, and the adjoint solve's gradient
monitor        LayerParallel, its losses               -> its iterations, raised when they prove too few
oneshot        LayerParallel, an optimiser             -> steps in which states, adjoints and weights converge
prolongation   nn.Module, a factor                     -> the same network deeper, with smaller steps
times          LayerParallel, inputs                   -> seconds of every layer
simulation     levels, seconds, number of ranks        -> a timeline of one step

solver         settings, layers, levels, and the solve itself; nothing there knows of networks
distributed    LayerParallel, a device mesh            -> one rank's share of its layers
"""

from .module import LayerParallel, layer_parallel
from .monitor import Event, Monitor
from .oneshot import OneShot, SampleStates, names_of
from .prolongation import ProlongedModule, prolong
from .simulation import simulate_multigrid
from .times import LayerTimes, measure_layers

__all__ = [
    "Event",
    "LayerParallel",
    "LayerTimes",
    "Monitor",
    "OneShot",
    "ProlongedModule",
    "SampleStates",
    "layer_parallel",
    "measure_layers",
    "names_of",
    "prolong",
    "simulate_multigrid",
]
