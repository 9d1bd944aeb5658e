"""A layer-parallel network, an example -> nothing, where every layer draws the same numbers from the same seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pararealize.errors import MultigridError
from pararealize.multigrid.solver.propagators import Forward
from pararealize.restore import left_as_found
from pararealize.tracing.captured import Capture

if TYPE_CHECKING:
    from .module import LayerParallel

__all__ = ["check_replay"]

TIMES = 8  # evaluations: a mask that is drawn anew each time is hardly the same in all


def check_replay(net: LayerParallel, captured: Capture) -> None:
    """Run layers that could not be looked into several times from one seed, in train mode.

    Raises:
        MultigridError: one gives other values each time: it draws from Python, NumPy or a generator of its own, and
            every sweep would see another network.
    """
    hidden = [n for n, row in enumerate(net.rows) if row.layer.opaque]
    if not hidden or any(parameter.is_meta for parameter in net.parameters()):
        return
    example = captured.example.resized(captured.example.batch)
    with left_as_found(net), torch.no_grad():
        for module in net.modules():
            module.training = True
        u, *context = net._stem(*example.args, **example.kwargs)
        forward = Forward(dict(enumerate(net.rows)), net.hierarchy, context, 0, recording=False)
        for n in range(hidden[-1] + 1):
            values = [forward.step(0, n, u.clone()) for _ in range(TIMES if n in hidden else 1)]
            if any(not torch.equal(value, values[0]) for value in values if not value.isnan().any()):
                raise MultigridError(
                    f"{net.rows[n].layer.name} gives other values each time although torch's seed is the same: it "
                    "draws from Python's or NumPy's random numbers, or from a generator of its own, and every sweep "
                    "would see another network; draw with torch.rand and the like, from torch's own random state"
                )
            u = values[0]
