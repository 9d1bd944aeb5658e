"""Parareal neural networks: turn a deep network into segments that run at the same time.

The compiler is a pipeline of functions from one value to the next, which :func:`pararealize` composes
(``compiler.py``); each stage has a package::

    capture           nn.Module -> Capture                     the forward pass as one graph            tracing
    find_blocks       Capture -> BlockChain                    the repeated blocks, and where to cut    analysis
    receptive_fields  BlockChain -> fields                     what every block sees of its input       analysis.fields
    plan_segments     BlockChain, costs, ... -> Plan           the cut into n segments, as plain data   planning, plan
    build_adapter     two spaces (shapes) -> nn.Module         C^j: segment j's own, cheap input        coarse
    build_coarse      two spaces (shapes) -> nn.Module         F^j: a stand-in for segment j + 1        coarse
    emit              BlockChain, Plan, ... -> PararealModule  the converted network                    network

What is done with a converted network::

    run_local         PararealModule -> LocalModule            in one process: streams, CUDA graphs     network.local
    capture_step      a network, loss, batch -> GraphedStep    a training step as one CUDA graph        network.local
    distribute        PararealModule, mesh -> Stage            over processes, with their segments      distributed
    capture_stage     Stage -> GraphedStage                    a rank's parts as CUDA graphs            network.local
    simulate          Plan, seconds -> Timeline                one step in time, on every device        plan
    fit               a network, data, Recipe -> History       trained from scratch                     train, data
    calibrate         PararealModule, ... -> Calibration       fitted to its trained original           calibration
    tradeoff          a trained nn.Module, ... -> Tradeoff     speed-up against error, plan by plan     tradeoffs
    compare           a PararealModule, its original -> Comparison   quality and times, side by side    comparison
    load              a folder of net.save -> PararealModule   as it was, on any machine                loading, saving
    plan_strategies   nn.Module, devices -> a comparison       what every strategy takes, predicted     strategies
    write_report      any of these values -> an HTML page      to look at, and to send                  reports

Two systems of the same family, for residual networks::

    layer_parallel    nn.Module -> LayerParallel               layers solved for by multigrid in depth  multigrid
    restack           nn.Module -> RestackedModule             blocks rewired as Runge-Kutta steps      restacking

The root's own files serve all packages: errors, control_characters, files, figure, lookup, manifest, models,
random_state, restore and table.
"""

from pararealize.analysis.blocks import Block, BlockChain, find_blocks
from pararealize.analysis.cost import Costs, count_costs, measure_costs
from pararealize.analysis.fields.field import ReceptiveField, receptive_fields
from pararealize.analysis.space import Space
from pararealize.calibration.fine_tuning import fine_tune
from pararealize.calibration.fitting import calibrate
from pararealize.coarse.adapter import build_adapter
from pararealize.coarse.coarse_block import build_coarse
from pararealize.comparison.measurement import compare
from pararealize.comparison.report import Comparison
from pararealize.distributed.stage import Stage
from pararealize.multigrid.module import LayerParallel, layer_parallel
from pararealize.multigrid.prolongation import prolong
from pararealize.network.emitter import emit
from pararealize.network.local.graphed_inference import capture_inference
from pararealize.network.local.graphed_stage import capture_stage
from pararealize.network.local.graphed_step import capture_step
from pararealize.network.local.module import LocalModule, capture_graphs, run_local
from pararealize.network.measurement import measure_network
from pararealize.network.module import PararealModule
from pararealize.plan.plan import Plan
from pararealize.plan.simulation import simulate
from pararealize.plan.timeline import Timeline
from pararealize.plan.times import Times, plan_times
from pararealize.plan.transfer import Transfer
from pararealize.planning.search import plan_segments
from pararealize.profiles.catalogue import device_profile
from pararealize.profiles.device import DeviceProfile, Link
from pararealize.reports.page import write_report
from pararealize.restacking.batchnorm import recalibrate_batchnorm
from pararealize.restacking.module import RestackedModule, restack
from pararealize.restacking.tableaux import Tableau
from pararealize.strategies.comparison import StrategyComparison
from pararealize.strategies.search import plan_strategies
from pararealize.tracing.captured import Capture
from pararealize.tracing.front_end import capture
from pararealize.tradeoffs.measured_plans import tradeoff
from pararealize.tradeoffs.report import Tradeoff
from pararealize.train.loop import fit
from pararealize.train.recipe import Recipe
from pararealize.train.run.history import History
from pararealize.train.run.score import evaluate

from .compiler import make_plan, pararealize
from .errors import PararealizeError
from .loading import load, load_original

__version__ = "0.1.0"

__all__ = [
    "Block",
    "BlockChain",
    "Capture",
    "Comparison",
    "Costs",
    "DeviceProfile",
    "History",
    "LayerParallel",
    "Link",
    "LocalModule",
    "PararealModule",
    "PararealizeError",
    "Plan",
    "ReceptiveField",
    "Recipe",
    "RestackedModule",
    "Space",
    "Stage",
    "StrategyComparison",
    "Tableau",
    "Timeline",
    "Times",
    "Tradeoff",
    "Transfer",
    "build_adapter",
    "build_coarse",
    "calibrate",
    "capture",
    "capture_graphs",
    "capture_inference",
    "capture_stage",
    "capture_step",
    "compare",
    "count_costs",
    "device_profile",
    "emit",
    "evaluate",
    "find_blocks",
    "fine_tune",
    "fit",
    "layer_parallel",
    "load",
    "load_original",
    "make_plan",
    "measure_costs",
    "measure_network",
    "pararealize",
    "plan_segments",
    "plan_strategies",
    "plan_times",
    "prolong",
    "recalibrate_batchnorm",
    "receptive_fields",
    "restack",
    "run_local",
    "simulate",
    "tradeoff",
    "write_report",
]
