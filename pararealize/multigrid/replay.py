"""A network's layers, an example -> a refusal of layers whose random numbers torch's seeds do not replay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pararealize.errors import MultigridError
from pararealize.multigrid.solver.hierarchy import Hierarchy
from pararealize.multigrid.solver.propagators import Forward, TimeStep
from pararealize.restore import left_as_found
from pararealize.tracing.captured import Capture
from pararealize.tracing.module_view import Piece

__all__ = ["check_replay"]

TIMES = 8  # evaluations of a layer: a mask that is drawn anew each time is hardly the same in all


def check_replay(
    net: nn.Module, stem: Piece, rows: Sequence[TimeStep], hierarchy: Hierarchy, captured: Capture
) -> None:
    """Run layers that could not be looked into several times from one seed, in train mode.

    Args:
        net: the network, which is left as found.
        stem: the piece that gives the value before the first layer, and the context.
        rows: its layers in order.
        hierarchy: their levels.
        captured: what the network was made from, with its example.

    Raises:
        MultigridError: one gives other values each time: it draws from Python, NumPy or a generator of its own, and
            every sweep would see another network.
    """
    opaque = [n for n, row in enumerate(rows) if row.layer.opaque]
    if not opaque or any(parameter.is_meta for parameter in net.parameters()):
        return
    example = captured.example.resized(captured.example.batch)
    with left_as_found(net), torch.no_grad():
        for module in net.modules():
            module.training = True
        u, *context = stem(*example.args, **example.kwargs)
        forward = Forward(dict(enumerate(rows)), hierarchy, context, 0, recording=False)
        for n in range(opaque[-1] + 1):
            # A copy of u each time: the maps remember what a layer gave for one and the same tensor.
            values = [forward.step(0, n, u.clone()) for _ in range(TIMES if n in opaque else 1)]
            if any(not torch.equal(value, values[0]) for value in values if not value.isnan().any()):
                raise MultigridError(
                    f"{rows[n].layer.name} gives other values each time although torch's seed is the same: it "
                    "draws from Python's or NumPy's random numbers, or from a generator of its own, and every sweep "
                    "would see another network; draw with torch.rand and the like, from torch's own random state"
                )
            u = values[0]
