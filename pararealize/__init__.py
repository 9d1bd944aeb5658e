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
    run_local         ... -> LocalModule              local.py
    distribute        ..., DeviceMesh -> Stage        distributed.py

and :func:`pararealize`, the composition up to ``emit``. What a step looks like in time::

    simulate          Plan, Times -> Timeline         schedule.py
    measure_network   PararealModule -> Times         times.py

Beside it, :func:`restack` rewires residual blocks as Runge-Kutta steps (``tableaux.py``, ``residual.py``,
``restack.py``); what it gives can be converted too.
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
from .history import History
from .local import LocalModule, capture_graphs, run_local
from .plan import Plan
from .planning import plan_segments
from .recalibrate import recalibrate_batchnorm
from .recipe import Recipe
from .restack import RestackedModule, restack
from .schedule import simulate
from .stage import Stage
from .tableaux import Tableau
from .timeline import Timeline
from .times import Times, measure_network, plan_times
from .train import evaluate, fit

__version__ = "0.1.0"

__all__ = [
    "Block",
    "BlockChain",
    "Capture",
    "Costs",
    "History",
    "LocalModule",
    "PararealModule",
    "PararealizeError",
    "Plan",
    "ReceptiveField",
    "Recipe",
    "RestackedModule",
    "Space",
    "Stage",
    "Tableau",
    "Timeline",
    "Times",
    "build_adapter",
    "build_coarse",
    "capture",
    "capture_graphs",
    "count_costs",
    "emit",
    "evaluate",
    "find_blocks",
    "fit",
    "make_plan",
    "measure_costs",
    "measure_network",
    "pararealize",
    "plan_segments",
    "plan_times",
    "recalibrate_batchnorm",
    "receptive_fields",
    "restack",
    "run_local",
    "simulate",
]
