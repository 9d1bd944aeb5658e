"""A network over several ranks of :mod:`torch.distributed`: each with its own segments, all of them in one training.

A network and a device mesh go in; each rank gets a module with the weights of its own segments, whose training method
computes, sends and differentiates its share. In reading order::

    mesh                    the processes that torchrun started -> a device mesh
    distribution            PararealModule, mesh -> this rank's module: the composition of what follows
    partition               which rank owns which parts, and which values cross
    assignment              how many segments each rank takes: the least critical path
    meeting                 the ranks of a mesh before they have groups: who is absent, whose arguments fail
    process_groups          mesh -> the groups of one network's ranks and of its copies
    consistency             facts and weights of all ranks -> the same on all, or an error that names both values
    rank_modules            copies of the modules that a rank's parts use, and of no others
    rank_parameters         whose gradients are counted, summed and averaged, also after others took their place
    module_modes            in which submodules the training flag is another one than the network's
    meta_device             values for such modules of a network without any
    rank_setup              what every rank is made of, whichever kind of network it is
    rank_segments           a rank's parts as functions
    rank_calls              each call of a rank, announced before its messages
    step                    a rank's share of one training step, forward and backward
    correction              z_j from y_j and what other ranks send, and backward what they get in return
    window_ends             what a window ends with, given to the ranks of the next one, and its gradient back
    autograd_cuts           where one graph of autograd ends and the next begins
    activity                what the rank does, told to the watchdog and to recordings
    tied_parameters         which ranks hold a parameter together, and all its names
    gradients               averages over copies, sums over holders
    gradient_norms          gradients of any element types -> their norm
    stage_module            a rank's share as a module: names, copies, moves to other element types
    stage                   the module that a rank gets: steps
    serving                 requests of the first rank, which all compute, and their answers
    activation_checkpoint   a segment that keeps few activations
    training_processes      the processes that train one network: sums, facts and faults of all
    messages                in which order ranks send what to each other, and in which format (a folder)
    watchdog                what happens when a rank raises, dies or hangs (a folder)
    checkpoint              files that do not depend on how many ranks wrote them (a folder)
"""

from .distribution import distribute
from .mesh import make_mesh, started_by_torchrun
from .serving import Server
from .stage import Stage
from .training_processes import TrainingProcesses, processes_of

__all__ = ["Server", "Stage", "TrainingProcesses", "distribute", "make_mesh", "processes_of", "started_by_torchrun"]
