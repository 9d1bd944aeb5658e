"""The new modules of a parareal network: adapters C^j and coarse blocks F^j, described, counted and built.

In reading order:

    spec              AdapterPlan and CoarsePlan, the rows of a plan: plain data
    halving           two sizes -> the halvings that lead from the one near to the other
    one_sided         which side may be read -> padding and shifts that keep to it, or why nothing does
    resampling        two spaces -> the route between them: pools, projections, moves of axes
    adapter           two spaces -> the adapter C^j, its description and its cost
    kinds             the table of coarse kinds, one row each: a new kind is registered here
    units             two spaces -> the units of the paper, depthwise units and linear maps
    bottleneck_unit   two spaces -> the narrow residual unit
    output_correction a space, a kind -> the linear map K^{m,j} of what the segments of a window miss of one another
    folded_map        a layer, a linear map of its output -> the map within the layer's weights
    copies            blocks of a segment -> copies with fresh weights
    custom            a callable of the user's -> its module, checked
    coverage          receptive fields -> how many units, and how wide a kernel
    coarse_block      CoarsePlan -> the coarse block F^j, and its cost
    family            BlockChain -> what sort of network it is
    evidence_table    BlockChain, n -> the kind that "auto" stands for, from what was tried on such networks
"""

from .adapter import Adapter, build_adapter, describe_adapter
from .coarse_block import build_coarse
from .copies import block_choice
from .coverage import kernel_for
from .evidence_table import Choice, Evidence, choose, evidence
from .family import family_of
from .kinds import CoarseKind, coarse_name, kind_for, units_for
from .output_correction import OutputCorrection, build_correction
from .spec import AdapterPlan, CoarsePlan, CorrectionPlan

__all__ = [
    "Adapter",
    "AdapterPlan",
    "Choice",
    "CoarseKind",
    "CoarsePlan",
    "CorrectionPlan",
    "Evidence",
    "OutputCorrection",
    "block_choice",
    "build_adapter",
    "build_coarse",
    "build_correction",
    "choose",
    "coarse_name",
    "describe_adapter",
    "evidence",
    "family_of",
    "kernel_for",
    "kind_for",
    "units_for",
]
