"""Parareal neural networks: turn a deep network into segments that run at the same time.

The compiler, from the bottom floor to the top; each stage is a function from one value to the next, and a package
imports only from those above it in this list::

    tracing      capture           nn.Module -> Capture          the forward pass as one graph
    data         load              a name -> Dataset             what networks are trained on
    analysis     find_blocks       Capture -> BlockChain         the repeated blocks; their costs, receptive fields
    coarse       build_adapter     Space, Space -> module        adapters C^j and coarse blocks F^j
    restacking   restack           nn.Module -> RestackedModule  residual blocks as Runge-Kutta steps
    plan         simulate          Plan, Times -> Timeline       what was decided, and what a step looks like in time
    planning     plan_segments     BlockChain, ... -> Plan       where to cut, which adapters and coarse blocks
    distributed  distribute        a network, DeviceMesh -> Stage   each rank with its own segments
    network      emit              ... -> PararealModule         the converted network, in one process or many
    multigrid    layer_parallel    nn.Module -> LayerParallel    layers solved for in parallel, by multigrid
    compiler     pararealize       nn.Module -> PararealModule   the composition of the stages up to emit
    train        fit               a network, data -> History    training, with runs that survive their process
    calibration  calibrate         PararealModule -> Calibration    from a trained network to a parallel one

Below all of them stand the root's own files: errors, files, figure, lookup, models, random_state, restore, table.
"""

from pararealize.analysis.blocks import Block, BlockChain, find_blocks
from pararealize.analysis.cost import Costs, count_costs, measure_costs
from pararealize.analysis.fields.field import ReceptiveField, receptive_fields
from pararealize.analysis.space import Space
from pararealize.calibration.fine_tuning import fine_tune
from pararealize.calibration.fitting import calibrate
from pararealize.coarse.adapter import build_adapter
from pararealize.coarse.coarse_block import build_coarse
from pararealize.distributed.stage import Stage
from pararealize.multigrid.module import LayerParallel, layer_parallel
from pararealize.multigrid.prolongation import prolong
from pararealize.network.emitter import emit
from pararealize.network.local.module import LocalModule, capture_graphs, run_local
from pararealize.network.measurement import measure_network
from pararealize.network.module import PararealModule
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
from pararealize.train.loop import fit
from pararealize.train.recipe import Recipe
from pararealize.train.run.history import History
from pararealize.train.run.score import evaluate

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
