"""Deciding: where a network is cut, and what stands at every interface; gives a Plan, before anything is built.

In reading order:

    search      BlockChain, Fields, Costs, n -> Plan (``plan_segments``). Here it is decided where to cut: by
                ``step_cuts``, by equal cuts, or at the blocks that the user names
    agreement   a plan made before, a network -> every fault of the one as a plan for the other
    arguments   what a user asks of a plan -> what it means for a network, or every fault at once
    prices      a kind of module and two spaces -> what it costs, counted or measured
    step_cuts   costs of both directions -> the cut with the smallest step: a search over pairs of times
    path_cuts   costs of one direction -> the cut with the smallest critical path, where ``step_cuts`` begins;
                and equal cuts
    window_arguments  what a user asks of windows -> the blocks of each, or an error
    window_cuts       costs of blocks, a number of windows -> where they begin
    rows        prices and a cut -> the Plan with its rows: segments, adapters, coarse blocks
"""

from .agreement import check_plan
from .arguments import device_fault
from .path_cuts import CutProblem, cheapest_cuts, equal_cuts
from .prices import Price, Prices
from .search import plan_segments
from .step_cuts import StepProblem, cheapest_step

__all__ = [
    "CutProblem",
    "Price",
    "Prices",
    "StepProblem",
    "cheapest_cuts",
    "cheapest_step",
    "check_plan",
    "device_fault",
    "equal_cuts",
    "plan_segments",
]
