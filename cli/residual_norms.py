"""A parareal network and some inputs -> the section of a page with the norms of its residuals at every interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .step_timelines import on_device_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pararealize.reports import Section

__all__ = ["section_of_residuals"]


def section_of_residuals(net: nn.Module, inputs: Any) -> Section | None:
    """What adapters miss at each interface, and what coarse blocks leave of it; in eval mode, and so afterwards.

    Args:
        net: the network; one without interfaces has no such section.
        inputs: a tensor, or a dict of inputs by name.
    """
    from pararealize import PararealModule
    from pararealize.calibration.interfaces import Interfaces
    from pararealize.coarse.spec import numbered
    from pararealize.reports import Chart, Section, Series
    from pararealize.table import quantity

    if not isinstance(net, PararealModule) or net.plan.n == 1:
        return None
    interfaces = Interfaces(net.eval())
    values = interfaces.in_sequence(on_device_of(net, inputs))
    names, missed, left = list[str](), list[float](), list[float]()
    for window in interfaces.windows:
        interfaces.with_fine(values, window)
        for row in window.segments[:-1]:
            z, u = interfaces.corrected(values, row.index), values.true[row.index]
            names.append(numbered("z", *row.index).replace("_", ","))
            missed.append(_relative(interfaces.residual(values, row.index), z))
            left.append(_relative(z - interfaces.at(row.index, u), u))
    chart = Chart(
        title="Residual norms", x="interface", y="relative norm", log=True, names=tuple(names),
        series=(
            Series(name="residual: z_j − x_{j+1}, of z_j", points=tuple(enumerate(missed))),
            Series(name="left: z_j − u_j, of u_j", points=tuple((i, norm) for i, norm in enumerate(left) if norm)),
        ),
        description="The residual is what the adapter behind an interface missed, and what coarse blocks correct for. "
        "What is left is the distance to u_j, the value where all segments run in sequence.",
    )  # fmt: skip
    return Section(title="Residuals", lead=f"Of {quantity(values.samples, 'sample')}.", figures=(chart,))


def _relative(value: Tensor, of: Tensor) -> float:
    norm = float(of.norm())
    return float(value.norm()) / norm if norm else 0.0
