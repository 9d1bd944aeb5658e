"""Plan before you buy: what every way of dividing a step over devices takes, predicted from counts or measurements.

search            nn.Module, devices, batch, profile -> StrategyComparison (``plan_strategies``)
network_costs     seconds and bytes of a network's parts at any batch; sums of gradients over copies
measured_blocks   a network recorded at two batch sizes -> its blocks' seconds, measured here
measured_ranks    the ranks of a process group -> what steps take on their hosts
replicas          one device, and data parallelism
pipeline          GPipe, 1F1B and interleaved pipelines
parareal          parareal networks, alone and with copies
multigrid_layers  layer-parallel multigrid
strategy          one strategy with what it takes: plain data
comparison        all of them side by side, as text and JSON
advice            which to take, why, and what has not been measured
figure            a picture of the curves
"""

from .comparison import CurvePoint, StrategyComparison
from .measured_ranks import measure_ranks
from .search import plan_strategies
from .strategy import Strategy

__all__ = ["CurvePoint", "Strategy", "StrategyComparison", "measure_ranks", "plan_strategies"]
