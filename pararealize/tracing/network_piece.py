"""A piece of a converted network as its attribute: called, it is the piece; else, the model's own module of that name.

Many models have a ``stem`` or a ``head``. ``net.head(z)`` is the network's last piece; but ``net.head.eval()``,
``net.head.parameters()`` or ``net.head[0]`` are asked of the module that the model has under this name.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from .model_twin import twin_of
from .module_copy import uncopyable_tensors
from .module_view import NETWORK, ContainerView, ModuleView, Piece, origin_of

__all__ = ["NetworkPiece", "contents_of", "copy_over"]


class NetworkPiece(Piece):
    """A piece that follows its network's mode and never sets it.

    Args:
        net: the network.
        graph: the piece's graph, over the network's names.
        name: of the piece.
        is_attribute: the network has the piece under this name, and may have a submodule, parameter or buffer besides.
    """

    def __init__(self, net: nn.Module, graph: fx.Graph, name: str, *, is_attribute: bool = True) -> None:
        self.__dict__["_attribute"] = name if is_attribute else None
        namesake = next((c[name] for c in _contents(net) if name in c), None) if is_attribute else None
        if isinstance(namesake, nn.Module):  # names that users mean otherwise are read through a view of the network
            for node in graph.nodes:
                first = str(node.target).split(".")[0]
                if node.op in ("call_module", "get_attr") and hasattr(namesake, first):
                    node.target = f"{NETWORK}.{node.target}"
        super().__init__(net, graph, name)

    @property
    def training(self) -> bool:
        """The mode of the model's module of this name; the network's where there is none."""
        namesake = _namesake(self)
        return namesake.training if isinstance(namesake, nn.Module) else _network_mode(self)

    @training.setter
    def training(self, mode: bool) -> None:
        namesake = _namesake(self)
        if isinstance(namesake, nn.Module):
            namesake.training = mode

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            namesake = _namesake(self)
            if namesake is None:
                raise
            return getattr(namesake, name)

    def __setattr__(self, name: str, value: Any) -> None:
        namesake = _namesake(self)
        inner = (namesake._parameters, namesake._buffers) if isinstance(namesake, nn.Module) else ()
        for contents in inner:  # torch.export and functional_call exchange tensors by their names
            if name in contents:
                contents[name] = value
                return
        if name in self.__dict__ or hasattr(type(self), name) or namesake is None or not hasattr(namesake, name):
            super().__setattr__(name, value)
        else:
            setattr(namesake, name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Piece:
        memo |= {key: value for key, value in uncopyable_tensors(contents_of(self)).items() if key not in memo}
        return super().__deepcopy__(memo)

    def __getitem__(self, index: Any) -> Any:
        return _namesake(self)[index]  # type: ignore[index]

    def __len__(self) -> int:
        return len(_namesake(self))  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True


def contents_of(module: nn.Module) -> nn.Module:
    """A module to ask for the modules, parameters and buffers that it runs: of a piece, a view of its contents."""
    if not isinstance(module, NetworkPiece):
        return module
    view = ContainerView()
    view.__dict__.update(module.__dict__)
    return view


def copy_over(module: nn.Module, tensors: Mapping[int, torch.Tensor]) -> nn.Module:
    """A copy of a module, or of a piece, over other tensors; what it keeps in Python is its own.

    Args:
        module: only read.
        tensors: what takes the place of its parameters and buffers, by their ``id``.
    """
    memo: dict[int, Any] = dict(tensors)
    with unset_fake_temporarily():
        for child in contents_of(module).modules():
            if id(child) not in memo and not hasattr(type(child), "__deepcopy__"):
                twin_of(child, memo)
        return copy.deepcopy(module, memo)


def _network_mode(piece: NetworkPiece) -> bool:
    return bool(ModuleView.training.fget(piece))  # type: ignore[attr-defined]


def _contents(net: nn.Module) -> tuple[dict[str, Any], ...]:
    return net._modules, net._parameters, net._buffers


def _namesake(piece: NetworkPiece) -> nn.Module | torch.Tensor | None:
    """What the model has under the piece's name: a module, a parameter or a buffer."""
    name, net = piece.__dict__.get("_attribute"), origin_of(piece)
    if name is None or net is None:
        return None
    return next((contents[name] for contents in _contents(net) if contents.get(name) is not None), None)


def _asked_of_the_namesake(name: str) -> Callable[..., Any]:
    inherited = getattr(Piece, name)

    @functools.wraps(inherited)
    def method(self: NetworkPiece, *args: Any, **kwargs: Any) -> Any:
        namesake = _namesake(self)
        if namesake is None or not hasattr(namesake, name):
            return inherited(self, *args, **kwargs)
        result = getattr(namesake, name)(*args, **kwargs)
        return self if result is namesake else result

    return method


for _name in (
    *("train", "eval", "requires_grad_", "zero_grad", "apply", "_apply", "to", "to_empty", "type", "share_memory"),
    *("cpu", "cuda", "half", "float", "double", "bfloat16", "state_dict", "load_state_dict"),
    *("parameters", "named_parameters", "buffers", "named_buffers"),
    *("modules", "named_modules", "children", "named_children"),
):
    setattr(NetworkPiece, _name, _asked_of_the_namesake(_name))
