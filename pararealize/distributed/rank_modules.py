"""Network, parts of one rank, device -> RankModules: copies of the modules that these parts use, and of no others.

The copies have the original's qualified names and its ties: two names of one tensor are two names of one copy. Nothing
of the result refers to the network, so that its memory is free when the caller lets go of it.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from pararealize.errors import DistributedError
from pararealize.plan.parts import Part
from pararealize.tracing.hooks import copy_tensor_hooks, hook_of, tensor_hook_of
from pararealize.tracing.module_copy import copy_contents, uncopyable_tensors
from pararealize.tracing.module_view import Piece
from pararealize.tracing.tree_watch import TreeWatch

from .partition import PartitionableNetwork, TensorPaths, module_at, tensor_at, tensors_of

__all__ = ["RankModules", "check_hooks", "copy_modules"]


@dataclasses.dataclass(frozen=True, slots=True)
class RankModules:
    """The modules of one rank.

    Attributes:
        tree: a bare module with the rank's submodules, parameters and buffers under the network's names.
        parts: the rank's parts by name, over the modules of the tree.
        targets: for each part, by name, the qualified name of what is called.
        graphs: of those targets that are cut out of the original; the others are modules of the tree.
        watch: of the modules that these read.
    """

    tree: nn.Module
    parts: Mapping[str, nn.Module]
    targets: Mapping[str, str]
    graphs: Mapping[str, fx.Graph]
    watch: TreeWatch

    @classmethod
    def of(cls, tree: nn.Module, targets: Mapping[str, str], graphs: Mapping[str, fx.Graph]) -> RankModules:
        """The parts over the modules of a tree; the graphs are copied."""
        pieces = {
            target: Piece(tree, copy.deepcopy(graph), target.rpartition(".")[2]) for target, graph in graphs.items()
        }
        parts = {name: pieces.get(target) or module_at(tree, target) for name, target in targets.items()}
        return cls(tree, parts, targets, graphs, TreeWatch(tree, graphs.values()))

    def copied(self, memo: dict[int, Any]) -> RankModules:
        """Deep copies of all modules, tied as these are; ``memo`` is that of the copy."""
        return RankModules.of(copy_contents(self.tree, memo), self.targets, self.graphs)


def check_hooks(net: PartitionableNetwork) -> None:
    """Refuse hooks that no rank could run: those of the whole network, and of parameters that several parts share.

    Raises:
        DistributedError: there are such hooks.
    """
    if hook := hook_of(net):
        raise DistributedError(
            f"the network has a {hook}, and no rank has all that it would be called with; remove it from the network "
            "before distribute(...)"
        )
    targets: dict[int, set[str]] = {}
    for part in net.network_parts.values():
        for tensor in tensors_of(net, part).tensors(net):
            targets.setdefault(id(tensor), set()).add(part.target)
    for name, parameter in net.named_parameters():
        if len(users := targets.get(id(parameter), ())) > 1 and (hook := tensor_hook_of(parameter)):
            raise DistributedError(
                f"{name} has the hook {hook}, and is read by {', '.join(sorted(users))}: ranks would call it with "
                "parts of the gradient. Remove it, and change the gradient after backward"
            )


def copy_modules(net: PartitionableNetwork, parts: Sequence[Part], device: torch.device) -> RankModules:
    """Copy the modules of some parts; with the stem, also the tensors of the network that no part uses.

    Args:
        net: the network; it is left as found. On the meta device, copies get memory without values.
        parts: those that the rank owns.
        device: where the copies are made.
    """
    others = _other_names(net)
    paths = _paths_of(net, parts, [name for name, is_used in others.items() if not is_used])
    memo = _copied_tensors(net, paths, device)
    # further names of tensors that are copied, as the whole network's state dict has them
    aliases = [name for name, is_used in others.items() if is_used and id(tensor_at(net, name)) in memo]
    paths = TensorPaths(paths.modules, tuple(dict.fromkeys([*paths.attributes, *aliases])))
    tree = _copied_tree(net, paths, memo)
    graphs = {part.target: copy.deepcopy(net.part_graphs[part.name]) for part in parts if part.name in net.part_graphs}
    return RankModules.of(tree, {part.name: part.target for part in parts}, graphs)


def _paths_of(net: PartitionableNetwork, parts: Sequence[Part], unused: Sequence[str]) -> TensorPaths:
    """All that the parts use, and with the stem what no part does."""
    used = [tensors_of(net, part) for part in parts]
    modules = dict.fromkeys(path for paths in used for path in paths.modules)
    attributes = dict.fromkeys(path for paths in used for path in paths.attributes)
    if any(part.kind == "stem" for part in parts):
        attributes.update(dict.fromkeys(unused))
    return TensorPaths(tuple(modules), tuple(attributes))


def _copied_tensors(net: PartitionableNetwork, paths: TensorPaths, device: torch.device) -> dict[int, Any]:
    """The memo of ``copy.deepcopy`` that puts every tensor of these paths on the device, once whatever its names."""
    memo: dict[int, Any] = {}
    for path in paths.modules:
        memo.update(uncopyable_tensors(module_at(net, path)))
    for tensor in paths.tensors(net):
        if id(tensor) not in memo:
            memo[id(tensor)] = _copied(tensor, device)
    return memo


def _copied_tree(net: PartitionableNetwork, paths: TensorPaths, memo: dict[int, Any]) -> nn.Module:
    """Bare modules down to what is copied; outer modules first, so that what they contain is not copied again."""
    tree = nn.Module().train(net.training)
    for path in sorted(paths.modules, key=lambda path: path.count(".")):
        owner, _, name = path.rpartition(".")
        target = _container(net, tree, owner)
        if name not in target._modules:
            target._modules[name] = copy.deepcopy(module_at(net, path), memo)
    for path in paths.attributes:
        owner, _, name = path.rpartition(".")
        target, source = _container(net, tree, owner), module_at(net, owner)
        if name in source._parameters and name not in target._parameters:
            target._parameters[name] = copy.deepcopy(source._parameters[name], memo)
        elif name in source._buffers and name not in target._buffers:
            persistent = name not in source._non_persistent_buffers_set
            target.register_buffer(name, copy.deepcopy(source._buffers[name], memo), persistent=persistent)
    return tree


def _container(net: nn.Module, tree: nn.Module, path: str) -> nn.Module:
    """The module of that name in the tree; a bare one in the original's mode where there is none yet."""
    target, source = tree, net
    for name in path.split(".") if path else ():
        inner = source._modules[name]
        assert inner is not None
        if name not in target._modules:
            target._modules[name] = nn.Module().train(inner.training)
        child = target._modules[name]
        assert child is not None
        target, source = child, inner
    return target


def _other_names(net: PartitionableNetwork) -> dict[str, bool]:
    """Names of tensors by which no part reads them, and whether a part reads them by another name."""
    used: set[int] = set()
    paths: set[str] = set()
    for part in net.network_parts.values():
        uses = tensors_of(net, part)
        used.update(map(id, uses.tensors(net)))
        paths.update(uses.modules, uses.attributes)
    every = (*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False))
    return {
        name: id(tensor) in used
        for name, tensor in every
        if paths.isdisjoint(itertools.accumulate(name.split("."), "{}.{}".format))  # of all owners, and the name itself
    }


def _copied(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy, with the attributes that Python code has set on it; of a meta tensor, memory that is visibly empty."""
    if tensor.is_meta:
        copied = torch.empty_like(tensor, device=device)
        copied = copied.fill_(torch.nan) if copied.is_floating_point() else copied.zero_()
    else:
        copied = tensor.detach().to(device, copy=True)
    if isinstance(tensor, nn.Parameter):
        copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
    copied.__dict__.update(tensor.__dict__)
    copy_tensor_hooks(tensor, copied)
    return copied
