"""RankModules, TiedParameters -> RankParameters: whose gradients are counted, summed and averaged, as they are now.

Python code may put other parameters in the place of those that were distributed: ``load_state_dict(assign=True)``,
an assignment, a parametrization. Sums and averages that went on with the old ones would leave the new ones out without
a word. So before each step the rank looks whether its parameters are still the same ones.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from pararealize.errors import DistributedError

from .rank_modules import RankModules
from .tied_parameters import TiedParameters, counted_parameters

__all__ = ["RankParameters"]


class RankParameters:
    """The parameters of one rank, sorted by what becomes of their gradients.

    Args:
        rank: this one, of those of one network.
        modules: of the rank.
        tied: the names and holders of the whole network's parameters.
        last_phases: for each of the rank's parts, by name, the last backward call that reaches it.
        averaged: whether gradients are averaged over copies of the network.

    Attributes:
        counted: those that a sum over the ranks of one network takes from this one.
        shared: for each set of ranks that this one belongs to, those that exactly these ranks hold together.
        phases: every one, with the number of the last backward call that reaches it.
        names: all that each of these has, in the same order.
    """

    counted: Sequence[nn.Parameter]
    shared: Mapping[tuple[int, ...], Sequence[nn.Parameter]]
    phases: Sequence[tuple[nn.Parameter, int]]
    names: Sequence[tuple[str, ...]]

    def __init__(
        self,
        rank: int,
        modules: RankModules,
        tied: TiedParameters,
        last_phases: Mapping[str, int],
        *,
        averaged: bool,
    ) -> None:
        self._rank, self._modules, self._tied, self._last_phases = rank, modules, tied, last_phases
        self._averaged = averaged
        self._sort()

    def over(self, modules: RankModules) -> RankParameters:
        """Those of copies of the rank's modules."""
        return RankParameters(self._rank, modules, self._tied, self._last_phases, averaged=self._averaged)

    def follow(self) -> bool:
        """Look whether other parameters stand in the place of the old ones now, and sort them anew if so.

        Raises:
            DistributedError: what other ranks, or copies of the network, share with this one is not there any more;
                a module is another one, which the rank would not call; parameters have been sharded.
        """
        holders, names, contents = self._columns
        if all(map(operator.is_, map(dict.get, holders, names), contents)):  # without a line of Python for each
            return False
        self._check()
        self._sort()
        return True

    def held_together(self, kind: Literal["parameters", "buffers"]) -> dict[tuple[int, ...], dict[str, torch.Tensor]]:
        """For each set of ranks that this one belongs to, what exactly these hold, by the first of its names.

        The sets and names are the same on all these ranks, and come in one order.
        """
        return {
            ranks: {name: contents[key] for name, (contents, key) in places.items()}
            for ranks, places in self._held_together[kind].items()
        }

    def _find_held_together(self, kind: str) -> dict[tuple[int, ...], dict[str, tuple[dict[str, Any], str]]]:
        found: dict[tuple[int, ...], dict[str, tuple[dict[str, Any], str]]] = {}
        for path, module in self._modules.tree.named_modules():
            contents = module._parameters if kind == "parameters" else module._buffers
            for key, tensor in contents.items():
                name = f"{path}.{key}" if path else key
                holders = self._tied.holders.get(name, ())
                if tensor is not None and len(holders) > 1 and self._rank in holders:
                    found.setdefault(holders, {})[self._tied.first_name(name)] = contents, key
        return {ranks: dict(sorted(places.items())) for ranks, places in sorted(found.items())}

    def _sort(self) -> None:
        tree = self._modules.tree
        self._held_together = {kind: self._find_held_together(kind) for kind in ("parameters", "buffers")}
        self.names = _names_of(tree)
        self._places: list[tuple[dict[str, Any], str, Any]] = [
            (contents, name, content)
            for module in tree.modules()
            for contents in (module._parameters, module._modules)
            for name, content in contents.items()
        ]
        self._columns = tuple(zip(*self._places, strict=True)) or ((), (), ())
        self.shared = self._tied.shared_by(self._rank, tree)
        self.counted = counted_parameters(self._rank, tree, self.shared)
        phases: dict[int, int] = {}
        for name, part in self._modules.parts.items():
            for parameter in part.parameters():
                phases[id(parameter)] = max(phases.get(id(parameter), 0), self._last_phases[name])
        self.phases = [(parameter, phases.get(id(parameter), 0)) for parameter in tree.parameters()]

    def _check(self) -> None:
        """Compare modules and the names of parameters with those at the last look."""
        names = _names_of(self._modules.tree)
        before, now = ({name: i for i, group in enumerate(groups) for name in group} for groups in (self.names, names))
        holders = self._tied.holders
        faults = [
            f"the module {name!r} is a {type(contents.get(name)).__name__} now, which this rank does not call"
            for contents, name, content in self._places
            if isinstance(content, nn.Module) and contents.get(name) is not content
        ]
        faults += [
            f"{name} is not there any more, and {'copies' if self._averaged else 'several ranks'} share it"
            for name in before
            if name not in now and (self._averaged or len(holders.get(name, ())) > 1)
        ]
        faults += [f"{name} is new, and copies share none" for name in now if self._averaged and name not in before]
        for group in self.names:
            several = [name for name in group if name in now]
            if len({now[name] for name in several}) > 1:
                faults += [f"{' and '.join(several)} were one parameter and are several now"]
        faults += [
            f"{name} is sharded over ranks"
            for name, parameter in self._modules.tree.named_parameters()
            if hasattr(parameter, "device_mesh")  # a DTensor
        ]
        if faults:
            more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise DistributedError(
                f"rank {self._rank} does not hold what was distributed: {'; '.join(faults[:3])}{more}. Change "
                "the model before pararealize(...) and distribute(...), and load values by stage.load_state_dict(...)"
            )


def _names_of(tree: nn.Module) -> list[tuple[str, ...]]:
    """All names of each parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in tree.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [tuple(group) for group in names.values()]
