"""Restacking: s residual blocks in a row become one step of a Runge-Kutta method of s stages, with the same parameters.

module       nn.Module, scheme                       -> RestackedModule, and what was rewired and what was not
tableaux     a scheme's name, or coefficients        -> a Butcher tableau that has checked its order
grouping     Capture, Tableau                        -> groups of s blocks, and why other blocks are in none
growth       Tableau, groups                         -> what would make large coefficients diverge
rewiring     Capture, groups, Tableau                -> the graph of the steps
batchnorm    a network, a loader of inputs           -> statistics of batch norms, measured anew
"""

from .batchnorm import recalibrate_batchnorm
from .module import BlockGroup, RestackedModule, Restacking, restack
from .tableaux import SCHEMES, Surd, Tableau, rooted_trees, stacked_euler, tableau, verner

__all__ = [
    "SCHEMES",
    "BlockGroup",
    "RestackedModule",
    "Restacking",
    "Surd",
    "Tableau",
    "recalibrate_batchnorm",
    "restack",
    "rooted_trees",
    "stacked_euler",
    "tableau",
    "verner",
]
