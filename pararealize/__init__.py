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

Layers solved for in parallel, by multigrid (:func:`layer_parallel`)::

    find_layers       Capture -> Layers               layers.py
    make_hierarchy    ... -> Hierarchy                hierarchy.py
    solve             ... -> values at C-points       multigrid.py

Beside it, :func:`restack` rewires residual blocks as Runge-Kutta steps (``tableaux.py``, ``residual.py``,
``restack.py``); what it gives can be converted too.
"""

from pararealize.analysis.blocks import Block, BlockChain, Space, find_blocks
from pararealize.analysis.cost import Costs, count_costs, measure_costs
from pararealize.analysis.fields.field import ReceptiveField, receptive_fields
from pararealize.calibration.fine_tuning import fine_tune
from pararealize.calibration.fitting import calibrate
from pararealize.coarse.adapter import build_adapter
from pararealize.coarse.coarse_block import build_coarse
from pararealize.distributed.stage import Stage
from pararealize.multigrid.module import LayerParallel, layer_parallel
from pararealize.multigrid.prolongation import prolong
from pararealize.network.local.module import LocalModule, capture_graphs, run_local
from pararealize.network.measurement import measure_network
from pararealize.network.module import PararealModule, emit
from pararealize.plan.plan import Plan
from pararealize.plan.simulation import simulate
from pararealize.plan.timeline import Timeline
from pararealize.plan.times import Times, plan_times
from pararealize.plan.transfer import Transfer
from pararealize.planning.search import plan_segments
from pararealize.restacking.batchnorm import recalibrate_batchnorm
from pararealize.restacking.module import RestackedModule, restack
from pararealize.restacking.tableaux import Tableau
from pararealize.tracing.captured import Capture
from pararealize.tracing.front_end import capture
from pararealize.train.loop import evaluate, fit
from pararealize.train.recipe import Recipe
from pararealize.train.run.history import History

from .compiler import make_plan, pararealize
from .errors import PararealizeError

__version__ = "0.1.0"

__all__ = [
    "Block",
    "BlockChain",
    "Capture",
    "Costs",
    "History",
    "LayerParallel",
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
    "Transfer",
    "build_adapter",
    "build_coarse",
    "calibrate",
    "capture",
    "capture_graphs",
    "count_costs",
    "emit",
    "evaluate",
    "find_blocks",
    "fine_tune",
    "fit",
    "layer_parallel",
    "make_plan",
    "measure_costs",
    "measure_network",
    "pararealize",
    "plan_segments",
    "plan_times",
    "prolong",
    "recalibrate_batchnorm",
    "receptive_fields",
    "restack",
    "run_local",
    "simulate",
]
