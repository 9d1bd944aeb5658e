"""Parareal neural networks: turn a deep network into segments that run at the same time.

The stages, each a function from one value to the next, in order::

    capture           nn.Module -> Capture            capture.py
    find_blocks       Capture -> BlockChain           blocks.py
    receptive_fields  BlockChain -> Fields            field.py
    count_costs       BlockChain -> Costs             cost.py
    plan_segments     BlockChain, ... -> Plan         plan.py
    build_adapter     Plan -> adapter modules         adapters.py
    build_coarse      Plan -> coarse modules          coarse.py
    emit              ... -> PararealModule           emit.py

and :func:`pararealize`, their composition. Beside it, :func:`restack` rewires residual blocks as Runge-Kutta steps
(``tableaux.py``, ``residual.py``, ``restack.py``); what it gives can be converted too.
"""

from .adapters import build_adapter
from .blocks import Block, BlockChain, Space, find_blocks
from .capture import Capture, capture
from .coarse import build_coarse
from .compiler import make_plan, pararealize
from .cost import Costs, count_costs, measure_costs
from .emit import PararealModule, emit
from .errors import PararealizeError
from .field import ReceptiveField, receptive_fields
from .plan import Plan
from .planning import plan_segments
from .recalibrate import recalibrate_batchnorm
from .restack import RestackedModule, restack
from .tableaux import Tableau

__version__ = "0.1.0"

__all__ = [
    "Block",
    "BlockChain",
    "Capture",
    "Costs",
    "PararealModule",
    "PararealizeError",
    "Plan",
    "ReceptiveField",
    "RestackedModule",
    "Space",
    "Tableau",
    "build_adapter",
    "build_coarse",
    "capture",
    "count_costs",
    "emit",
    "find_blocks",
    "make_plan",
    "measure_costs",
    "pararealize",
    "plan_segments",
    "recalibrate_batchnorm",
    "receptive_fields",
    "restack",
]
