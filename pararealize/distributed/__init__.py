"""A network over several ranks of :mod:`torch.distributed`: each with its own segments, all of them in one training.

A network and a device mesh go in; each rank gets a module with the weights of its own segments, whose training method
computes, sends and differentiates its share. In reading order::

    distribution            PararealModule, mesh -> this rank's module: the composition, one line a stage
    partition               which rank owns which parts, and which values cross
    assignment              how many segments each rank takes: the least critical path
    process_groups          mesh -> the groups of one network's ranks and of its copies
    consistency             facts and weights of all ranks -> the same on all, or an error that names both values
    rank_modules            copies of the modules that a rank's parts use, and of no others
    meta_device             values for such modules of a network without any
    rank_setup              what every rank is made of, whichever kind of network it is
    rank_segments           a rank's parts as functions
    step                    a rank's share of one training step, forward and backward
    correction              z_j from y_j and what other ranks send, and the gradients, the other way
    autograd_cuts           where one graph of autograd ends and the next begins
    activity                what the rank does, told to the watchdog and to recordings
    tied_parameters         which ranks hold a parameter together, and all its names
    gradients               averages over copies, sums over holders
    stage                   the module that a rank gets
    activation_checkpoint   a segment that keeps few activations
    training_processes      the processes that train one network: sums, facts and faults of all
    mesh                    the processes that torchrun started -> a device mesh
    messages                in which order ranks send what to each other, and in which format (a folder)
    watchdog                what happens when a rank raises, dies or hangs (a folder)
    checkpoint              files that do not depend on how many ranks wrote them (a folder)
"""

from .activation_checkpoint import checkpointed_segment, preserved_buffers
from .assignment import assign
from .consistency import agree, agree_on_weights
from .distribution import distribute
from .mesh import make_mesh, started_by_torchrun
from .partition import Partition, PartitionableNetwork, SegmentedNetwork, SegmentPartition
from .process_groups import ProcessGroups
from .rank_modules import RankModules, copy_modules
from .rank_setup import RankSetup, agree_on_partition, set_up_rank
from .stage import Stage
from .training_processes import TrainingProcesses, processes_of

__all__ = [
    "Partition",
    "PartitionableNetwork",
    "ProcessGroups",
    "RankModules",
    "RankSetup",
    "SegmentPartition",
    "SegmentedNetwork",
    "Stage",
    "TrainingProcesses",
    "agree",
    "agree_on_partition",
    "agree_on_weights",
    "assign",
    "checkpointed_segment",
    "copy_modules",
    "distribute",
    "make_mesh",
    "preserved_buffers",
    "processes_of",
    "set_up_rank",
    "started_by_torchrun",
]
