"""PartitionableNetwork, names of parts, device -> Share: one rank's own modules, with memory, and no others.

From a network with weights a rank copies its own parts. From the meta device it allocates them and draws them from a
seed; what no module knows how to draw stays undefined, and is reported, until a checkpoint is loaded.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pararealize.coarse.adapter import build_adapter
from pararealize.coarse.coarse_block import draw_coarse
from pararealize.plan.plan import Plan
from pararealize.random_state import seeded_weights
from pararealize.tracing.module_copy import computed_tensors
from pararealize.tracing.module_view import Piece

from .partition import PartitionableNetwork, SegmentedNetwork, module_at, tensors_of

__all__ = ["Share", "Undefined", "draw", "share_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """What a rank owns: a tree of modules with the network's names, and its parts by name, which look into it."""

    tree: nn.Module
    parts: Mapping[str, nn.Module]


def share_of(
    net: PartitionableNetwork, names: Sequence[str], device: torch.device, targets: Mapping[str, str]
) -> Share:
    """Copy the parts of those names, and what else the first rank holds of the network: tensors that no part uses.

    Args:
        net: the network; it is left as found, and nothing of the result refers to it.
        names: of parts, ``stem``, ``context``, ``C2``, ``g1``, ``F1``, ``head``.
        device: where the copies stand.
        targets: from names to the modules that are called, such as ``coarse.F1``.
    """
    calls: dict[str, None] = {}
    attributes: dict[str, None] = {}
    for name in names:
        if targets[name].startswith("segments.") and name[0] == "F":
            continue  # g^{j+1} itself
        called, read = tensors_of(net, name)
        calls.update(dict.fromkeys(called))
        attributes.update(dict.fromkeys(read))
    others = _unnamed(net)
    if "stem" in names:
        attributes.update((name, None) for name, used in others.items() if not used)
    memo: dict[int, Any] = {}
    for path in calls:
        memo.update(computed_tensors(module_at(net, path)))
    for tensor in _tensors(net, calls, attributes):
        if id(tensor) not in memo:
            memo[id(tensor)] = _copied(tensor, device)
    for name, used in others.items():  # further names of what is shared, as the whole network's state dict has them
        (tensor,) = _tensors(net, {}, {name: None})
        if used and id(tensor) in memo:
            attributes[name] = None
    tree = nn.Module()
    tree.training = net.training
    for path in sorted(calls, key=lambda path: path.count(".")):
        owner, _, name = path.rpartition(".")
        here = _container(net, tree, owner)
        if name not in here._modules:
            here._modules[name] = copy.deepcopy(module_at(net, path), memo)
    for path in attributes:
        owner, _, name = path.rpartition(".")
        here, there = _container(net, tree, owner), module_at(net, owner)
        if name in there._parameters and name not in here._parameters:
            here._parameters[name] = copy.deepcopy(there._parameters[name], memo)
        elif name in there._buffers and name not in here._buffers:
            persistent = name not in there._non_persistent_buffers_set
            here.register_buffer(name, copy.deepcopy(there._buffers[name], memo), persistent=persistent)
    parts: dict[str, nn.Module] = {}
    for name in names:
        if name in net.pieces:
            parts[name] = Piece(tree, copy.deepcopy(net.pieces[name]), name)
    for name in names:
        if name not in parts:
            target = targets[name]
            parts[name] = parts[target[9:]] if target.startswith("segments.") else module_at(tree, target)
    return Share(tree, parts)


def _container(net: nn.Module, tree: nn.Module, path: str) -> nn.Module:
    """The module of that name in the tree; a bare one in the original's mode where there is none yet."""
    here, there = tree, net
    for name in path.split(".") if path else ():
        child = there._modules[name]
        assert child is not None
        if name not in here._modules:
            bare = nn.Module()
            bare.training = child.training
            here._modules[name] = bare
        found = here._modules[name]
        assert found is not None
        here, there = found, child
    return here


def _tensors(net: nn.Module, calls: Mapping[str, None], attributes: Mapping[str, None]) -> Iterator[torch.Tensor]:
    for path in calls:
        module = module_at(net, path)
        yield from module.parameters()
        yield from module.buffers()
    for path in attributes:
        owner, _, name = path.rpartition(".")
        there = module_at(net, owner)
        for tensors in (there._parameters, there._buffers):
            tensor = tensors.get(name)
            if tensor is not None:
                yield tensor


def _unnamed(net: PartitionableNetwork) -> dict[str, bool]:
    """Names of tensors by which no part reads them, and whether a part reads them by another name."""
    used: set[int] = set()
    paths: set[str] = set()
    added = [name for path in ("adapters", "coarse") if path in net._modules for name in module_at(net, path)._modules]
    for name in (*net.pieces, *added):
        calls, attributes = tensors_of(net, name)
        used.update(id(t) for t in _tensors(net, dict.fromkeys(calls), dict.fromkeys(attributes)))
        paths.update(calls, attributes)
    every = (*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False))
    return {name: id(tensor) in used for name, tensor in every if paths.isdisjoint(_prefixes(name))}


def _prefixes(path: str) -> list[str]:
    """The path itself, its owner's, and so on."""
    names = path.split(".")
    return [".".join(names[:end]) for end in range(len(names), 0, -1)]


def _copied(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if tensor.is_meta:
        made = torch.empty_like(tensor, device=device)
        made = made.fill_(torch.nan) if made.is_floating_point() else made.zero_()
    else:
        made = tensor.detach().to(device, copy=True)
    if isinstance(tensor, nn.Parameter):
        made = nn.Parameter(made, requires_grad=tensor.requires_grad)
    made.__dict__.update(tensor.__dict__)
    return made


# From the meta device ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Undefined:
    """Tensors without values: those that were NaN, or whose version is still the same."""

    tensors: dict[str, tuple[torch.Tensor, int]]

    def names(self) -> list[str]:
        """Names of tensors that still have no values."""
        for name, (tensor, version) in list(self.tensors.items()):
            written = not tensor.isnan().any() if tensor.is_floating_point() else tensor._version != version
            if written:
                del self.tensors[name]
        return list(self.tensors)


def draw(share: Share, net: SegmentedNetwork, names: Sequence[str], device: torch.device, seed: int) -> Undefined:
    """Give values to a share that came from the meta device.

    Adapters and coarse blocks are those of a conversion with this seed. Every other module with
    ``reset_parameters()`` draws by it, from a random state that the seed and its name fix, whichever rank it is on.

    Returns:
        The tensors that no module knows how to draw.
    """
    drawn: set[int] = set()
    for name in names:
        made = _built(net.plan, name, seed)
        if made is not None:
            own = module_at(share.tree, f"{'adapters' if name[0] == 'C' else 'coarse'}.{name}")
            own.load_state_dict(made.state_dict())
            drawn.update(id(tensor) for tensor in (*own.parameters(), *own.buffers()))
    first = {}
    canonical: dict[int, str] = {}
    for path, module in net.named_modules(remove_duplicate=False):
        first[path] = canonical.setdefault(id(module), path)
    for path, module in share.tree.named_modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        own_tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
        if reset is None or not own_tensors or all(id(tensor) in drawn for tensor in own_tensors):
            continue
        with seeded_weights(seed, first[path]), device:
            reset()
        drawn.update(id(tensor) for tensor in own_tensors)
    state = (*share.tree.named_parameters(), *share.tree.named_buffers())
    return Undefined({name: (tensor, tensor._version) for name, tensor in state if _is_undefined(tensor, drawn)})


def _is_undefined(tensor: torch.Tensor, drawn: set[int]) -> bool:
    return bool(tensor.isnan().any()) if tensor.is_floating_point() else id(tensor) not in drawn


def _built(plan: Plan, name: str, seed: int) -> nn.Module | None:
    """The adapter or coarse block of that name as a conversion would have built it, where shapes say all of it."""
    if name[0] == "C" and name[1:].isdigit():
        row = plan.adapters[int(name[1:]) - 2]
        return build_adapter(row.x, row.y, from_stem=row.source == "stem", seed=seed, name=name)
    if name[0] == "F" and name[1:].isdigit():
        return draw_coarse(plan.coarse_blocks[int(name[1:]) - 1], seed=seed)
    return None
