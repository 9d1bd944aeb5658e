"""Leaf modules and fake tensors -> what comes out of them, without arithmetic and without doing the same work twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map_only

from pararealize.random_source import RandomSource
from pararealize.random_state import preserve_own_host_state
from pararealize.restore import set_within

from .layer_rules import layout_of_call, layout_of_layer, layouts_of_recurrence
from .sizes import Sizes, has_symbols, is_symbolic, layout_of

__all__ = ["Leaves", "is_from_torch", "is_layer", "is_one_call", "size_kind"]

_PURE = {  # what comes out depends on settings and shapes alone; other layers are called each time
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm,
    nn.GroupNorm, nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.MaxPool2d, nn.AvgPool2d,
}  # fmt: skip
_RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)
_CHANNELS = {
    *("in_channels", "out_channels", "in_features", "out_features", "num_features", "num_channels", "normalized_shape"),
    *("groups", "num_groups"),
}
_PURE_METHODS = (
    *("add", "sub", "mul", "div", "relu", "tanh", "sigmoid", "relu_", "add_", "__add__", "__sub__", "__mul__"),
    *("__radd__", "__rsub__", "__rmul__", "__truediv__", "__neg__", "__iadd__"),
)
_PURE_FUNCTIONS = {
    *(getattr(torch.Tensor, name) for name in _PURE_METHODS),
    *(torch.add, torch.sub, torch.mul, torch.relu, torch.tanh, torch.sigmoid),
    *(nn.functional.relu, nn.functional.gelu, nn.functional.silu),
}
# of these, sizes other than those of channels matter, too
_PURE_PRODUCTS = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, nn.functional.linear}


def is_from_torch(module: nn.Module) -> bool:
    """Whether a module's class is one of torch.nn, of which it is known what a call does."""
    return type(module).__module__.startswith("torch.nn")


_TRANSPARENT = (  # modules of torch.nn that are containers: what they call is recorded, and not they
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one of torch.nn that is called as a whole, and no container, as a bare ``nn.Module`` is."""
    return is_from_torch(module) and type(module) is not nn.Module and not isinstance(module, _TRANSPARENT)


def is_one_call(opaque: Callable[[str, nn.Module], bool], path: str, module: nn.Module) -> bool:
    """Whether a module is one node of the graph: it is opaque, or a layer of torch's."""
    return opaque(path, module) or is_layer(module)


_FAKE = torch._C._TorchDispatchModeKey.FAKE


class Leaves:
    """Makes fake tensors, and calls leaf modules on them.

    Attributes:
        mode: the fake mode that the tensors belong to.
        real: from the ``id`` of a fake parameter or buffer to the real one.
        sizes: the symbols of the recording that is under way, if any.
        repeated: whether the last call was one of those that were not really made.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.sizes: Sizes | None = None
        self.repeated = False
        self.real: dict[int, torch.Tensor] = {}
        self._results: dict[Any, Any] = {}  # what a leaf is called on -> shape, strides, type and device of the result
        self._sizes_of_results: dict[Any, Any] = {}  # the same, with sizes that belong to the recording under way
        self._recording: Sizes | None = None
        self._meaning: tuple[Any, ...] = ()

    def fake(
        self, tensor: torch.Tensor, *, requires_grad: bool = False, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """A fake tensor of the same shape, layout and device, and of that type, with a storage of its own."""
        if tensor.layout != torch.strided or type(tensor) not in (torch.Tensor, nn.Parameter, FakeTensor):
            return self.mode.from_tensor(tensor.detach() if dtype is None else tensor.detach().to(dtype))
        dtype = dtype or tensor.dtype
        fake = self.empty(tensor.shape, tensor.stride(), dtype, tensor.device, requires_grad=requires_grad)
        if isinstance(tensor, nn.Parameter):
            fake._is_param = True  # what isinstance(tensor, nn.Parameter) asks for
        return fake

    def empty(
        self, size: Any, stride: Any, dtype: torch.dtype, device: torch.device, *, requires_grad: bool = False
    ) -> torch.Tensor:
        """A fake tensor, made without a dispatch: a network has thousands.

        ``FakeTensorMode.from_tensor`` gives the same, and takes some eight times as long. With symbols as sizes, most
        of it is arithmetic for the bytes of a storage, which a storage of none spares.
        """
        mode = torch._C._unset_dispatch_mode(_FAKE)  # as unset_fake_temporarily does, in a third of its time
        try:
            if any(map(is_symbolic, size)):
                elem = torch.as_strided(torch.empty(0, dtype=dtype, device="meta"), size, stride)
            else:
                elem = torch.empty_strided(size, stride, dtype=dtype, device="meta", requires_grad=requires_grad)
        finally:
            if mode is not None:
                torch._C._set_dispatch_mode(mode)
        return FakeTensor(self.mode, elem, device)

    def forget_results(self) -> None:
        """Make every call again: what calls decide on sizes is a condition of the recordings that they are made in."""
        self._results.clear()
        self._sizes_of_results.clear()

    def call(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call a leaf; of equal leaves on equal inputs, only the first is really run."""
        self.repeated = False
        if not is_from_torch(module):
            with preserve_own_host_state():  # a layer that is one node may draw from it
                try:
                    return module(*args, **kwargs)
                except Exception:  # whatever it does not do with fake tensors
                    if has_symbols((args, kwargs)):  # the caller learns what it gives from calls with plain sizes
                        raise
                    return self._run_for_real(module, args, kwargs)
        if type(module) in _RECURRENT and (results := self._recurrent(module, args, kwargs)) is not None:
            return results
        # without a momentum, a batch norm takes it from the value of a counter; shapes do not depend on it
        momentum = 0.1 if isinstance(module, _NormBase) and module.momentum is None else None
        with contextlib.nullcontext() if momentum is None else set_within(module, "momentum", momentum):
            return self._cached(_pure_call(module, args, kwargs), module, args, kwargs, layout_of_layer)

    def _recurrent(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Output and states of a recurrent layer, without a call for every step."""
        if not _is_plain_call(module, args, kwargs) or _casts():
            return None
        if (layouts := layouts_of_recurrence(module, args)) is None:
            return None
        self.repeated = True
        output, *states = (self.empty(*layout) for layout in layouts)
        return output, tuple(states) if len(states) > 1 else states[0]

    def call_function(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Call a function of torch's; of equal calls of the commonest ones, only the first is really made."""
        return self._cached(_pure_function_call(function, args, kwargs), function, args, kwargs, layout_of_call)

    def _cached(self, key: Any, function: Any, args: Any, kwargs: Any, rule: Callable[..., Any]) -> Any:
        """Call what gives, or changes in place and returns, one tensor, or do as if it had been called.

        Args:
            key: equal for calls that give equal layouts; ``None`` where nothing is known of the call.
            function: what is called.
            args: its arguments.
            kwargs: the others.
            rule: from the function and its arguments to the layout of what it gives, where that needs no call.
        """
        self.repeated = False
        if (unchanged := _handed_on(function, args, kwargs)) is not None:
            return unchanged
        key = None if _casts() else key
        key = None if key is None else (self._symbols(), *key)
        if key is not None and key not in self._results and (layout := rule(function, args)) is not None:
            self._results[key] = layout
        if key in self._results:
            self.repeated = True
            if self._results[key] is not None:
                return self.empty(*self._layout(key))
            torch.autograd.graph.increment_version(args[0])
            return args[0]
        result = function(*args, **kwargs)
        if key is not None and isinstance(result, torch.Tensor):
            if result is args[0] and result._version:
                self._results[key] = None
            elif not any(result is argument for argument in args):
                self._results[key] = layout_of(result)
        return result

    def _layout(self, key: Any) -> Any:
        """What :meth:`empty` makes a result of; its symbols, which recordings share, as sizes of the one under way."""
        if key not in self._sizes_of_results:
            shape, stride, dtype, device = self._results[key]
            if self.sizes is not None:
                shape, stride = (tuple(map(self.sizes.size, axes)) for axes in (shape, stride))
            self._sizes_of_results[key] = shape, stride, dtype, device
        return self._sizes_of_results[key]

    def _symbols(self) -> tuple[Any, ...]:
        """What the symbols of the recording under way stand for: recordings share results where that is the same."""
        if self._recording is not self.sizes:  # compared by the object, which is held: an id may be given again
            self._recording = self.sizes
            self._sizes_of_results.clear()
            self._meaning = () if self.sizes is None else tuple((s, *place) for s, place in self.sizes.inputs.items())
        return self._meaning

    def _run_for_real(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Learn an opaque module's output shapes from a run on real tensors: its parameters, inputs of zeros.

        Such a module may look at values, which fake tensors do not have. Its parameters are copies, since it may change
        them; the shapes are those that zeros give, and the last check runs the graph on the user's own example.
        """
        tensors = (*module.named_parameters(), *module.named_buffers())
        with unset_fake_temporarily(), RandomSource(seed=0):
            copies = {
                name: self.real[id(fake)].detach().to(fake.dtype, copy=True)
                for name, fake in tensors
                if id(fake) in self.real
            }
            zeros = tree_map_only(torch.Tensor, _zeros, (tuple(args), dict(kwargs)))
            result = functional_call(module, copies, *zeros)
        return tree_map_only(torch.Tensor, self.fake, result)


def _handed_on(function: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    """The input of a dropout that drops nothing, which torch returns as it is; ``None`` of any other call.

    On symbolic sizes, torch 2.10 computes it by a decomposition that copies, and a later change in place would miss it.
    """
    if type(function) is nn.Dropout and len(args) == 1 and _is_plain_call(function, args, kwargs):
        drops, value = function.training and function.p, args[0]
    elif function is nn.functional.dropout or function is torch.dropout:
        names = ("input", "p", "train" if function is torch.dropout else "training")
        given = {"p": 0.5, "training": True} | dict(zip(names, args, strict=False)) | kwargs
        drops, value = given["p"] and given.get(names[2], True), given.get("input")
    else:
        return None
    return value if isinstance(value, torch.Tensor) and not drops else None


def _is_plain_call(module: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether it is of a tensor, by position, without hooks."""
    if kwargs or not args or not isinstance(args[0], torch.Tensor):
        return False
    return not (module._forward_hooks or module._forward_pre_hooks)


def _casts() -> bool:
    """Whether the model computes in other types than those of its values, within a region of its own."""
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def _pure_call(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """A key equal for calls that give equal shapes, for the layers that deep networks have most of; else ``None``."""
    if type(module) not in _PURE or len(args) != 1 or not _is_plain_call(module, args, kwargs):
        return None
    return *settings_of(module), *layout_of(args[0])


def _pure_function_call(function: Any, args: Any, kwargs: Any) -> Any:
    """The same for the functions that deep networks call most."""
    known = function in _PURE_FUNCTIONS or function in _PURE_PRODUCTS
    if not known or kwargs or not args or not isinstance(args[0], torch.Tensor):
        return None
    if not all(isinstance(argument, torch.Tensor | int | float) for argument in args):
        return None
    layouts = (layout_of(a) if isinstance(a, torch.Tensor) else (type(a), a) for a in args)
    # whether two arguments are one tensor decides what a change in place does
    return function, *layouts, *(argument is args[0] for argument in args[1:])


def size_kind(target: Any) -> Any:
    """Equal for what treats sizes that are no channels alike; ``None`` where channels matter, too.

    That is a convolution of 32 channels and one of 64, or a concatenation: whether what they give has the sizes that it
    should have need not be checked for each number of channels.
    """
    if not isinstance(target, nn.Module):
        return target if target in _PURE_FUNCTIONS or target is torch.cat else None
    if type(target) not in _PURE:
        return None
    kind, settings, _ = settings_of(target)
    return kind, tuple(item for item in settings[1:] if item[0] not in _CHANNELS)


def settings_of(module: nn.Module) -> tuple[Any, ...]:
    """Equal for modules of one kind that do the same with shapes, save for what they hold besides plain values."""
    values = module.__dict__.items()
    # the mode decides about the layout of nothing but norms, which compute with other kernels
    mode = module.training if isinstance(module, _NormBase) else None
    settings = (mode, *((k, v) for k, v in values if k != "training" and isinstance(v, int | float | str | tuple)))
    shapes = tuple((name, p.shape, p.dtype) for name, p in module._parameters.items() if p is not None)
    return type(module), settings, shapes


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
