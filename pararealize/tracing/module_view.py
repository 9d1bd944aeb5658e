"""A graph and the module tree whose names it uses -> a runnable module that shares that tree's parameters.

A piece of a network (stem, segment, head) is a graph over modules that live elsewhere, under their original names. Here
it becomes an ordinary module without a second set of parameters:

    tree (owner)                     Piece (not registered in the owner)
    └── layer1                       └── layer1   ContainerView: the same dictionaries of tensors, the same mode
        └── 0                            └── 0    ContainerView
            ├── conv1  <───────────────────  ├── conv1   the very same module object
            └── gamma  <───────────────────  └── gamma   read through the shared dictionary

so ``to``, ``train``, ``load_state_dict`` and optimisers on the tree reach every piece, and no state dict lists a
parameter twice.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from .module_copy import uncopyable_tensors
from .region_code import write_regions

__all__ = [
    "NETWORK",
    "BorrowedModule",
    "ContainerView",
    "ModuleView",
    "Piece",
    "PlainGraphModule",
    "borrow",
    "mirror",
    "origin_of",
]

# Attributes of views, called as no submodule of a user's is; NETWORK is a view of the whole tree, within a piece.
_ORIGIN, NETWORK = "_mirrored_origin", "_network"


class ModuleView(nn.Module):
    """A module whose training flag, parameters and buffers are those of an ``origin``, when it has one.

    What is done to it are functions below, not methods: a piece holds the user's modules under their own names as plain
    attributes, and any of them may be called as a method would be.
    """

    @property
    def training(self) -> bool:
        """The mode of the origin; one of its own where there is none."""
        origin = self.__dict__.get(_ORIGIN)
        return bool(self.__dict__.get("_mode", True)) if origin is None else bool(origin.training)

    @training.setter
    def training(self, mode: bool) -> None:
        origin = self.__dict__.get(_ORIGIN)
        if origin is None:
            self.__dict__["_mode"] = mode
        else:
            origin.training = mode


class ContainerView(ModuleView):
    """A module of the tree as a piece sees it: only the children that the piece uses, and no ``forward``."""

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        twin = ContainerView()
        memo[id(self)] = twin
        _copy_contents(self, twin, memo)
        return twin


class BorrowedModule(nn.Module):
    """A module that lives on another device, called here with copies of its parameters; gradients flow back to it.

    Attributes:
        lender: the module itself; no submodule, since its parameters belong to the tree that registers it.
        device: where it is called.
    """

    lender: nn.Module

    def __init__(self, lender: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.__dict__["lender"] = lender
        self.device = device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the lender with its parameters and buffers on this device; changed buffers are written back."""
        parameters, buffers = self.lender.named_parameters(), dict(self.lender.named_buffers())
        copies = {name: tensor.to(self.device) for name, tensor in (*parameters, *buffers.items())}
        result = torch.func.functional_call(self.lender, copies, args, kwargs)
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(copies[name])
        return result


class PlainGraphModule(fx.GraphModule):
    """A graph module that is called as any module is.

    ``fx.GraphModule`` gives each instance a ``__call__`` that prints the generated code on stderr where an operation of
    the graph raises; who calls a converted network wants the error alone.
    """

    def recompile(self) -> Any:
        """Write the forward anew, as fx does."""
        code = super().recompile()
        if "__call__" in vars(type(self)):
            del type(self).__call__
        return code


class Piece(ModuleView, PlainGraphModule):
    """A graph module over the modules and parameters of ``tree``, which it shares and does not own.

    Args:
        tree: the module whose qualified names the graph uses in ``call_module`` and ``get_attr``.
        graph: the graph; it becomes this piece's own.
        class_name: the name that the printed module shows.
        constants: tensors that the graph reads by a name under which the tree has no parameter or buffer.

    Paths that begin with ``NETWORK`` lead through a view of the whole tree to the same names.

    A deep copy of a piece is self-contained: it owns copies of what the piece uses, and follows its own mode.
    """

    def __init__(
        self,
        tree: nn.Module,
        graph: fx.Graph,
        class_name: str = "Piece",
        constants: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> None:
        fx.GraphModule.__init__(self, nn.Module(), fx.Graph(), class_name)
        # a graph and its nodes are a cycle, which would keep the piece, and the tree, until the garbage is collected
        self._graph.owning_module = None
        mirror(self, tree)
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr"):
                self._open(tree, node.target, is_module=node.op == "call_module", constant=constants.get(node.target))
        write_regions(graph)
        self.graph = graph

    def _open(self, tree: nn.Module, path: str, *, is_module: bool, constant: torch.Tensor | None) -> None:
        """Make views of the containers along ``path`` and put the module itself, or its owner's tensors, at the end."""
        view: ModuleView = self
        origin = tree
        *containers, name = path.split(".")
        for container in containers:
            child = origin if container == NETWORK else origin._modules[container]
            assert child is not None
            origin = child
            child_view = view._modules.get(container)
            if child_view is origin:  # the container itself is called in this piece: all below it is within reach
                return
            if child_view is None:
                child_view = ContainerView()
                mirror(child_view, origin)
                _adopt(view, container, child_view)
            assert isinstance(child_view, ModuleView)
            view = child_view
        if is_module:
            _adopt(view, name, origin._modules[name])
        elif name in origin._parameters or name in origin._buffers:
            # the dictionaries are shared and not their entries alone: ``to`` may put other tensors into the tree's
            for contents in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
                view.__dict__[contents] = origin.__dict__[contents]
        elif constant is not None:
            view.__dict__[name] = constant

    def __deepcopy__(self, memo: dict[int, Any]) -> Piece:
        twin = Piece(nn.Module(), fx.Graph(), type(self).__name__)
        twin.__dict__[_ORIGIN] = None
        memo[id(self)] = twin
        memo |= {key: value for key, value in uncopyable_tensors(self).items() if key not in memo}
        _copy_contents(self, twin, memo)
        twin.graph = copy.deepcopy(self.graph)
        return twin


def mirror(view: ModuleView, origin: nn.Module) -> None:
    """Let a view have the mode of a module."""
    view.__dict__[_ORIGIN] = origin


def origin_of(view: ModuleView) -> nn.Module | None:
    """The module whose mode a view has; ``None`` where that is its own."""
    return view.__dict__.get(_ORIGIN)


def _adopt(view: nn.Module, name: str, child: nn.Module | None) -> None:
    """Make a child known by a name: as a submodule, and as a plain attribute too.

    Printed graphs name every module by its whole path at every call, and looking a submodule up takes some 0.5 µs.
    """
    view._modules[name] = view.__dict__[name] = child


def borrow(piece: Piece, device: torch.device) -> None:
    """Let modules and tensors that live on other devices take part through copies made on the way."""
    for node in list(piece.graph.nodes):
        if node.op not in ("call_module", "get_attr"):
            continue
        path, _, name = node.target.rpartition(".")
        owner = piece.get_submodule(path)
        value = getattr(owner, name)
        if isinstance(value, nn.Module):
            if any(tensor.device != device for tensor in (*value.parameters(), *value.buffers())):
                _adopt(owner, name, BorrowedModule(value, device))
        elif isinstance(value, torch.Tensor) and value.device != device:
            with piece.graph.inserting_after(node):
                transfer = piece.graph.call_method("to", (node, device))
                transfer.meta["region"] = ()  # gradients flow through it to readers outside of any region
            node.replace_all_uses_with(transfer, delete_user_cb=lambda user, transfer=transfer: user is not transfer)
    piece.recompile()


def _copy_contents(source: ModuleView, target: ModuleView, memo: dict[int, Any]) -> None:
    target.training = source.training
    target.__dict__["_parameters"] = copy.deepcopy(source._parameters, memo)
    target.__dict__["_buffers"] = copy.deepcopy(source._buffers, memo)
    for name, child in source._modules.items():
        _adopt(target, name, copy.deepcopy(child, memo))
    target.__dict__["_non_persistent_buffers_set"] = set(source._non_persistent_buffers_set)
    for name, value in vars(source).items():
        if isinstance(value, torch.Tensor):  # a constant, which follows ``to`` in a copy
            target.register_buffer(name, copy.deepcopy(value, memo), persistent=False)
