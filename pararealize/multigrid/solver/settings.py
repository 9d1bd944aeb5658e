"""How a layer-parallel step iterates -> one plain value that the network, its ranks and the simulation share."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pararealize.argument_types import is_allowed
from pararealize.errors import MultigridError
from pararealize.plan.actions import Direction

__all__ = ["Cycle", "Relaxation", "Settings", "SettingsAttributes", "check_iterations"]

Relaxation = Literal["F", "FCF"]
Cycle = Literal["V", "F"]


class SettingsAttributes:
    """The settings as attributes that may be set between steps, on a network and on a rank's share of one."""

    forward_iterations: int
    backward_iterations: int
    relaxation: Relaxation
    cycle: Cycle
    tolerance: float
    warm_start: bool
    exact: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the forward and the adjoint solve of one step iterate; all ranks have the same.

    A network has each of these as an attribute (:class:`SettingsAttributes`); :meth:`of` reads them for the next step.

    Attributes:
        forward_iterations: k of the forward solve.
        backward_iterations: k of the adjoint solve.
        relaxation: ``"F"`` or ``"FCF"``.
        cycle: ``"V"`` or ``"F"``.
        tolerance: a solve ends early where its residual norm is at most this.
        warm_start: begin from the last step's states.
        exact: one layer after the other, without multigrid.

    Example:
        >>> Settings(backward_iterations=2).of_solve("backward")
        {'iterations': 2, 'relaxation': 'F', 'cycle': 'V', 'tolerance': 0.0}
    """

    forward_iterations: int = 2
    backward_iterations: int = 1
    relaxation: Relaxation = "F"
    cycle: Cycle = "V"
    tolerance: float = 0.0
    warm_start: bool = False
    exact: bool = False

    @classmethod
    def of(cls, network: SettingsAttributes) -> Settings:
        """The settings that stand as attributes of a network, as they are now."""
        return cls(**{field.name: getattr(network, field.name) for field in dataclasses.fields(cls)})

    def check(self) -> None:
        """Refuse settings that are none, as they may be set between steps.

        Raises:
            MultigridError: one of them is none; those of the forward solve are looked at first.
        """
        check_iterations(self.forward_iterations, self.relaxation, self.cycle)
        check_iterations(self.backward_iterations)
        faults = []
        if not is_allowed(self.tolerance, float) or not self.tolerance >= 0:
            faults.append(f"tolerance is {self.tolerance!r}; pass a residual norm of at least 0")
        flags = {"warm_start": self.warm_start, "exact": self.exact}
        faults += [
            f"{name} is {flag!r}; pass True or False" for name, flag in flags.items() if not isinstance(flag, bool)
        ]
        if faults:
            raise MultigridError("; and ".join(faults))

    def of_solve(self, direction: Direction) -> dict[str, Any]:
        """The keyword arguments that :func:`~pararealize.multigrid.solver.solver.solve` takes in one direction."""
        return {
            "iterations": self.forward_iterations if direction == "forward" else self.backward_iterations,
            "relaxation": self.relaxation,
            "cycle": self.cycle,
            "tolerance": self.tolerance,
        }


def check_iterations(iterations: object, relaxation: object = "F", cycle: object = "V") -> None:
    """Refuse what is no number of iterations, relaxation or cycle; all faults at once."""
    faults = []
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        faults.append(f"iterations are {iterations!r}; pass a whole number of at least 1")
    if relaxation not in ("F", "FCF"):
        faults.append(f"relaxation is {relaxation!r}; pass 'F' or 'FCF'")
    if cycle not in ("V", "F"):
        faults.append(f"cycle is {cycle!r}; pass 'V' or 'F'")
    if faults:
        raise MultigridError("; and ".join(faults))
