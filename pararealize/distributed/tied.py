"""A rank's modules, Groups -> Ties: what binds its parameters to those of others, all equal to begin with.

Sharers     sums over the ranks of one network that hold a parameter together     gradients.py
Replicas    averages over the copies of the network                               gradients.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import nn

from .consistency import agree_on_weights
from .gradients import Replicas, Sharers, broadcast_tensors
from .materialise import Undefined
from .partition import Partition, PartitionableNetwork, module_at, tensors_of
from .process_groups import Groups
from .rank import OwnParts

__all__ = ["Ties", "ties_of"]


@dataclasses.dataclass(slots=True)
class Ties:
    """What binds a rank's parameters to those of others.

    Attributes:
        sharers: sums over the ranks that share parameters.
        replicas: averages over the dp ranks, where there are several.
        counted: the parameters whose norm this rank counts: a shared one on the first rank that holds it.
        keys: of the whole network's state dict, each with its other names (tied tensors).
        undefined: tensors without values, from the meta device.
    """

    sharers: Sharers
    replicas: Replicas | None
    counted: frozenset[int]
    keys: Mapping[str, tuple[str, ...]]
    undefined: Undefined


def ties_of(
    net: PartitionableNetwork,
    own: OwnParts,
    tree: nn.Module,
    groups: Groups,
    undefined: Undefined,
    size: int,
) -> Ties:
    """Groups of ranks that share parameters, averages over dp, and equal values everywhere to begin with."""
    aliases, holders = _holders(net, own.layout)
    named = dict(tree.named_parameters(remove_duplicate=False))
    mine: dict[tuple[int, ...], dict[int, nn.Parameter]] = {}
    counted = {id(parameter) for parameter in named.values()}
    for name, parameter in named.items():
        ranks = holders.get(name, ())
        if len(ranks) > 1 and own.rank in ranks:
            mine.setdefault(ranks, {})[id(parameter)] = parameter
            if own.rank != ranks[0]:
                counted.discard(id(parameter))
    sharers = Sharers(
        {ranks: _in_order(list(found.values()), named, aliases) for ranks, found in sorted(mine.items())},
        own.wire.exchange,
    )
    sharers.equalise()
    replicas = None
    if groups.dp is not None:
        tensors = [*tree.parameters(), *tree.buffers()]
        broadcast_tensors(groups.dp, tensors)
        agree_on_weights(groups.dp, tree, what="copy weights over dp", timeout=groups.limit)
        phases = _last_phases(own, tree)
        replicas = Replicas(groups.dp, phases, size, lambda work: own.wire.wait(work, "averages over dp", own.rank))
    return Ties(sharers, replicas, frozenset(counted), aliases, undefined)


def _holders(
    net: PartitionableNetwork, layout: Partition
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[int, ...]]]:
    """For each name of a tensor its other names, and for each name of a parameter the ranks that hold it."""
    names: dict[int, list[str]] = {}
    tensors = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        names.setdefault(id(tensor), []).append(name)
    ranks: dict[int, set[int]] = {}
    for rank in range(layout.ranks):
        for part in layout.names(rank):
            if layout.parts[part].target.startswith("segments.") and part[0] == "F":
                continue
            calls, attributes = tensors_of(net, part)
            for path in calls:
                for parameter in module_at(net, path).parameters():
                    ranks.setdefault(id(parameter), set()).add(rank)
            for path in attributes:
                owner, _, name = path.rpartition(".")
                read = module_at(net, owner)._parameters.get(name)
                if read is not None:
                    ranks.setdefault(id(read), set()).add(rank)
    aliases = {name: tuple(other for other in names[id(tensor)] if other != name) for name, tensor in tensors}
    aliases.update({key: () for key in net.state_dict() if key not in aliases})
    holders = {name: tuple(sorted(ranks.get(id(tensor), ()))) for name, tensor in tensors}
    return aliases, holders


def _in_order(
    parameters: Sequence[nn.Parameter], named: Mapping[str, nn.Parameter], aliases: Mapping[str, tuple[str, ...]]
) -> list[nn.Parameter]:
    """An order that all ranks see alike, whatever name each knows a tensor by: by the first of all of its names."""
    first: dict[int, str] = {}
    for name, parameter in named.items():
        first[id(parameter)] = min(name, *aliases[name], first.get(id(parameter), name))
    return sorted(parameters, key=lambda parameter: first[id(parameter)])


def _last_phases(own: OwnParts, tree: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """Every parameter with the number of the last backward call that reaches it."""
    numbers = own.phases()
    last: dict[int, int] = {}
    for name, part in own.parts.items():
        for parameter in part.parameters():
            last[id(parameter)] = max(last.get(id(parameter), 0), numbers[name])
    return [(parameter, last.get(id(parameter), 0)) for parameter in tree.parameters()]
