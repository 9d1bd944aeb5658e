"""Network, Partition -> TiedParameters: which ranks hold a parameter, and all the names that it has.

A tensor is tied where several names of the network's state dict stand for it, or several ranks' parts use it, as an
embedding that is also the head's weight. Each of those ranks holds a copy; gradients of the copies are summed
(``gradients.py``), so that they stay equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import nn

from .partition import Partition, PartitionableNetwork, tensors_of

__all__ = ["TiedParameters", "counted_parameters"]


@dataclasses.dataclass(frozen=True, slots=True)
class TiedParameters:
    """The names and holders of a network's tensors.

    Attributes:
        other_names: for every key of the network's state dict, and every tensor's name, the tensor's other names.
        holders: for every name of a parameter or buffer the ranks whose parts use it.
    """

    other_names: Mapping[str, tuple[str, ...]]
    holders: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, net: PartitionableNetwork, partition: Partition) -> TiedParameters:
        """Read the network's modules, and what the graphs of all ranks' parts use of them."""
        names: dict[int, list[str]] = {}
        tensors = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
        for name, tensor in tensors:
            names.setdefault(id(tensor), []).append(name)
        ranks: dict[int, set[int]] = {}
        for rank in range(partition.ranks):
            for part in partition.parts_of(rank):
                for tensor in tensors_of(net, part).tensors(net):
                    ranks.setdefault(id(tensor), set()).add(rank)
        other_names = {name: tuple(other for other in names[id(tensor)] if other != name) for name, tensor in tensors}
        other_names.update({key: () for key in net.state_dict() if key not in other_names})
        holders = {name: tuple(sorted(ranks.get(id(tensor), ()))) for name, tensor in tensors}
        return cls(other_names, holders)

    def first_name(self, name: str) -> str:
        """The first of all names of a tensor, which is the same on every rank."""
        return min([name, *self.other_names.get(name, ())])

    def shared_by(self, rank: int, tree: nn.Module) -> dict[tuple[int, ...], list[nn.Parameter]]:
        """For each set of ranks that this one belongs to, its copies of what exactly these ranks hold.

        The sets come in one order on all ranks, and so do the parameters of a set: each rank may know a tensor by
        another name, so they are ordered by the first of all its names. The ranks' sums meet in that order.
        """
        first_names: dict[nn.Parameter, str] = {}
        shared: dict[tuple[int, ...], dict[nn.Parameter, None]] = {}
        for name, parameter in tree.named_parameters(remove_duplicate=False):
            first_names[parameter] = min(self.first_name(name), first_names.get(parameter, name))
            holders = self.holders.get(name, ())
            if len(holders) > 1 and rank in holders:
                shared.setdefault(holders, {})[parameter] = None
        return {ranks: sorted(parameters, key=first_names.__getitem__) for ranks, parameters in sorted(shared.items())}


def counted_parameters(
    rank: int, tree: nn.Module, shared: Mapping[tuple[int, ...], Sequence[nn.Parameter]]
) -> list[nn.Parameter]:
    """The parameters that a sum over all ranks takes from this one: a shared one from the first of its holders."""
    others = {id(parameter) for ranks, parameters in shared.items() if ranks[0] != rank for parameter in parameters}
    return [parameter for parameter in tree.parameters() if id(parameter) not in others]
