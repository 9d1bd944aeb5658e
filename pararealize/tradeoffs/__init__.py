"""How fast a trained network can be made and how near to itself it stays: plans, measured, from exact to fastest.

In reading order:

    measured_plans  a trained model, batches -> Tradeoff (``tradeoff`` composes the files here)
    block_values    the original's values at every block's ends, and its blocks as functions
    sensitivity     each possible window's cost, and the error that it alone makes
    space_changes   the same for windows in whose midst the space changes
    selection       windows that may be together: short steps at little error
    conversion      the model converted with such windows
    report          Tradeoff: speed-up against error, as text and JSON
    figure          a picture of a Tradeoff (``draw_tradeoff``)
"""

from .measured_plans import tradeoff
from .report import Tradeoff, TradeoffRow

__all__ = ["Tradeoff", "TradeoffRow", "tradeoff"]
