"""One forward pass on fake tensors -> an fx graph of module calls and functions, with qualified names.

The real Python forward runs once, on tensors that have shapes but no memory, under a ``TorchFunctionMode`` with
``nn.Module.__call__`` intercepted. Python itself runs, so control flow on shapes, dictionaries, keyword arguments and
output classes need no special care; what depends on *values* raises, and the raise names its place.

    leaf module called      ->  call_module    (torch.nn's own modules, and what is named as opaque)
    torch function called   ->  call_function
    tensor method called    ->  call_method, or the function of :mod:`operator`
    parameter or buffer     ->  get_attr

What the recording bakes in (the mode, the batch size) is found by comparing two recordings: see ``capture.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from pararealize.random_state import host_state
from pararealize.restore import as_written, left_as_found

from .leaves import Leaves
from .operations import after, describe, fields_of, is_computed, storage_of, tensors_in

__all__ = ["Recording", "UnreadableError", "record"]

_TRANSPARENT = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
)
_BASE_TYPES = (str, int, float, bool, complex, torch.dtype, torch.device, torch.memory_format, torch.layout)


class UnreadableError(Exception):
    """The recorder cannot represent what happens inside a module; the caller may make that module opaque."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The graph of one pass, and the tensors that are constants of the model without being parameters or buffers."""

    graph: fx.Graph
    constants: dict[str, torch.Tensor]


def record(
    model: nn.Module,
    placeholders: Mapping[str, Any],
    call: tuple[tuple[Any, ...], dict[str, Any]],
    *,
    batch: tuple[int, int] | None,
    training: bool,
    opaque: Callable[[str, nn.Module], bool],
) -> Recording:
    """Run the model's forward once and return what happened.

    Args:
        model: the model, put back as found.
        placeholders: the names of the inputs and their example values.
        call: those same values as positional and keyword arguments.
        batch: replace a leading dimension of the first size by the second, or ``None`` to keep the example's.
        training: the mode to record in.
        opaque: whether the module of a qualified name is to be one node.

    Raises:
        UnreadableError, or whatever the forward raises; ``error.pararealize_stack`` lists the modules it was raised in.
    """
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    with left_as_found(model, contents=False):
        recorder = _Recorder(model, fake_mode, opaque)
        for module in model.modules():  # module.train() would reach it too, but a model may have overridden train()
            module.training = training
        recorder.swap_parameters()
        tensors = [i for i, value in enumerate(placeholders.values()) if isinstance(value, torch.Tensor)]
        inputs = {
            name: recorder.placeholder(name, value, batch, required=i < tensors[-1])
            for i, (name, value) in enumerate(placeholders.items())
        }
        fakes = {id(placeholders[name]): value for name, value in inputs.items()}
        args, kwargs = tree_map(lambda value: fakes.get(id(value), value), call)
        with fake_mode, recorder.listening():
            output = model(*args, **kwargs)
            recorder.graph.output(recorder.output(output))
        return Recording(graph=recorder.graph, constants=recorder.constants)


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, fake_mode: FakeTensorMode, opaque: Callable[[str, nn.Module], bool]) -> None:
        super().__init__()
        self.model, self.fake_mode, self.opaque = model, fake_mode, opaque
        self.leaves = Leaves(fake_mode)
        self.graph = fx.Graph()
        self.constants: dict[str, torch.Tensor] = {}
        self.names = {id(module): name for name, module in model.named_modules()}
        self.stack: list[tuple[str, nn.Module]] = []
        self.calls: list[int] = []  # for each module on the stack, the number of its call
        self._number = itertools.count()
        self.paused = False
        self._nodes: dict[int, fx.Node] = {}  # id of a tensor -> the node that it is the value of, now
        self._attributes: dict[int, str] = {}  # id of a parameter, buffer or constant -> its qualified name
        self._owned: set[int] = set()  # the storages of the model's own tensors
        self._aliases: dict[int, list[torch.Tensor]] = {}  # storage -> every recorded tensor that looks into it
        self._changed: dict[int, fx.Node] = {}  # id of a tensor -> what changed it in place since it was last read
        self._passed_on: dict[int, int] = {}  # storage of what a module returned as it came -> its real storage
        self._alive: list[Any] = []  # an id is only good while its object lives

    # Setting up -----------------------------------------------------------------------------------------------------

    def swap_parameters(self) -> None:
        """Replace every parameter and buffer by a fake one and remember its name."""
        swapped: dict[int, torch.Tensor] = {}
        for path, module in self.model.named_modules():
            prefix = f"{path}." if path else ""
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in swapped:
                        fake = swapped[id(tensor)] = self.leaves.fake(tensor)
                        self._attributes[id(fake)] = prefix + name
                        self.leaves.real[id(fake)] = tensor
                    tensors[name] = swapped[id(tensor)]
            for name, value in module.__dict__.items():
                if isinstance(value, torch.Tensor):
                    self._attributes.setdefault(id(value), prefix + name)
        self._owned = {storage_of(fake) for fake in swapped.values()}
        self._alive.append(swapped)

    def placeholder(self, name: str, value: Any, batch: tuple[int, int] | None, *, required: bool) -> Any:
        if not isinstance(value, torch.Tensor):
            node = self.graph.placeholder(name) if required else self.graph.placeholder(name, default_value=value)
            node.meta["plain"] = value
            return value
        size = list(value.shape)
        if batch is not None and size and size[0] == batch[0]:
            size[0] = batch[1]
        with self.fake_mode:
            fake = torch.empty(size, dtype=value.dtype, device=value.device)
        node = self.graph.placeholder(name)
        self._remember(fake, node)
        node.meta.update(val=fake, memory=self._memory(fake))
        return fake

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        plain_call, plain_apply = nn.Module.__call__, torch.autograd.Function.__dict__["apply"]
        enter: Callable[[Any], Any] = torch.amp.autocast_mode.autocast.__enter__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self.call_module(plain_call, module, args, kwargs)

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if self.paused:
                return plain_apply.__get__(None, cls)(*args, **kwargs)
            raise UnreadableError(f"it applies the custom autograd function {cls.__name__}")

        def autocast(region: Any) -> Any:
            if not self.paused and len(self.stack) > 1:
                raise UnreadableError("it switches autocast inside its forward")
            return enter(region)

        nn.Module.__call__ = call  # type: ignore[method-assign]
        torch.autograd.Function.apply = classmethod(apply)
        torch.amp.autocast_mode.autocast.__enter__ = autocast  # type: ignore[method-assign]
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # a fused attention for eval mode alone is another structure
        try:
            with self, as_written():
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            nn.Module.__call__ = plain_call  # type: ignore[method-assign]
            torch.autograd.Function.apply = plain_apply
            torch.amp.autocast_mode.autocast.__enter__ = enter  # type: ignore[method-assign]

    # What happens while the forward runs ----------------------------------------------------------------------------

    def call_module(self, plain_call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        path = self.names.get(id(module))
        if self.paused or path is None:
            return plain_call(module, *args, **kwargs)
        self.stack.append((path, module))
        self.calls.append(next(self._number))
        try:
            if path and self._is_leaf(path, module):
                with torch._C.DisableTorchFunction():
                    return self._emit(
                        "call_module", path, args, kwargs, lambda: self.leaves.call(plain_call, module, args, kwargs)
                    )
            drawn = host_state()
            result = plain_call(module, *args, **kwargs)
            self._check_side_effects(module, drawn)
            return result
        except Exception as error:
            if not hasattr(error, "pararealize_stack"):
                error.pararealize_stack = tuple(self.stack)  # type: ignore[attr-defined]
            raise
        finally:
            self.stack.pop()
            self.calls.pop()

    def _check_side_effects(self, module: nn.Module, drawn: tuple[Any, ...]) -> None:
        """Refuse what a module did besides computing with tensors, which a graph would do once and never again."""
        if host_state() != drawn:
            raise UnreadableError("it draws random numbers from Python or NumPy, which a graph would freeze")
        for part in [module] if module is not self.model else self.model.modules():
            for buffer in part._buffers.values():
                node = self._nodes.get(id(buffer))
                if node is not None and id(buffer) not in self._attributes and is_computed(node):
                    raise UnreadableError("it assigns new values to its own buffers outside torch.nn's modules")

    def _is_leaf(self, path: str, module: nn.Module) -> bool:
        if self.opaque(path, module):
            return True
        return type(module).__module__.startswith("torch.nn") and not isinstance(module, _TRANSPARENT)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if func in (torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.__int__, torch.Tensor.__float__):
            return func(*args, **kwargs)  # fake tensors raise here: a value decides what happens next
        kind, target, arguments = describe(func, args)
        with torch._C.DisableTorchFunction():
            return self._emit(kind, target, arguments, kwargs, lambda: func(*args, **kwargs))

    def _emit(self, kind: str, target: Any, args: Any, kwargs: Any, run: Callable[[], Any]) -> Any:
        """Run one call and write it down, unless it neither makes nor changes a tensor."""
        inputs = list(tensors_in((args, kwargs)))
        versions = [t._version for t in inputs]
        self.paused = True
        try:
            result = run()
        finally:
            self.paused = False
        changed = [t for t, version in zip(inputs, versions, strict=True) if t._version != version]
        if not changed and next(tensors_in(result), None) is None and result is not None:
            return result
        if not changed and result is None:
            return None
        return self._write(kind, target, args, kwargs, result, inputs, changed)

    def _write(
        self,
        kind: str,
        target: Any,
        args: Any,
        kwargs: Any,
        result: Any,
        inputs: list[torch.Tensor],
        changed: list[torch.Tensor],
    ) -> Any:
        if any(id(t) in self._attributes or storage_of(t) in self._owned for t in changed):
            raise UnreadableError("it changes its own parameters or buffers outside torch.nn's modules")
        if not torch.is_grad_enabled() and any(self._trainable(t) for t in inputs):
            raise UnreadableError("it switches gradients off inside its forward")
        node = self.graph.create_node(kind, target, self._argument(tuple(args)), self._argument(dict(kwargs)))
        node.meta["nn_module_stack"] = {path: type(module) for path, module in self.stack}
        node.meta["calls"] = tuple(self.calls)
        node.meta["trainable"] = kind == "call_module" or any(self._trainable(t) for t in inputs)
        node.meta["changes"] = frozenset(self._memory(t) for t in changed)
        if any(result is t for t in inputs) and not any(result is t for t in changed):
            memory = self._memory(result)
            result = self.leaves.fake(result)  # returned as it came (dropout in eval mode): its own value all the same
            self._passed_on[storage_of(result)] = memory
        for tensor in changed:
            if not any(tensor is t for t in tensors_in(result)):
                self._move_on(tensor, node)
            for other in self._aliases.get(storage_of(tensor), ()):
                if other is not tensor:
                    self._move_on(other, node)
        self._bind(result, node, unchanged={id(t) for t in inputs} - {id(t) for t in changed})
        return result

    def _move_on(self, tensor: torch.Tensor, cause: fx.Node) -> None:
        """From here on, readers of ``tensor`` read it after ``cause`` changed it in place."""
        self._node(tensor)
        self._changed[id(tensor)] = cause

    # Tensors and nodes ----------------------------------------------------------------------------------------------

    def _memory(self, tensor: torch.Tensor) -> int:
        """Equal for tensors that look into the same memory, in the mode that is recorded."""
        storage = storage_of(tensor)
        return self._passed_on.get(storage, storage)

    def _remember(self, tensor: torch.Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = node
        self._changed.pop(id(tensor), None)
        self._alive.append(tensor)
        self._aliases.setdefault(storage_of(tensor), []).append(tensor)

    def _bind(self, value: Any, node: fx.Node, unchanged: set[int]) -> None:
        """Say that ``node`` is where ``value`` comes from, and so for every tensor within it."""
        node.meta["val"] = value
        if isinstance(value, torch.Tensor):
            node.meta["memory"] = self._memory(value)
            self._remember(value, node)
            return
        items = (
            value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
        )
        for key, item in items:
            if id(item) in unchanged or next(tensors_in(item), None) is None:
                continue
            child = self.graph.call_function(operator.getitem, (node, key))
            child.meta.update(node.meta)
            self._bind(item, child, unchanged)

    def _node(self, tensor: torch.Tensor) -> fx.Node:
        node = self._nodes.get(id(tensor))
        if node is None:
            node = self._nodes[id(tensor)] = self.graph.get_attr(self._attribute(tensor))
            node.meta["val"] = tensor
            node.meta["trainable"] = isinstance(self._original(str(node.target)), nn.Parameter)
        if (cause := self._changed.pop(id(tensor), None)) is not None:
            node = self._nodes[id(tensor)] = self.graph.call_function(after, (node, cause))
            node.meta.update(cause.meta, val=tensor)
        return node

    def _original(self, path: str) -> Any:
        owner, _, name = path.rpartition(".")
        module = self.model.get_submodule(owner)
        return nn.Parameter() if name in module._parameters else None

    def _attribute(self, tensor: torch.Tensor) -> str:
        path = self._attributes.get(id(tensor))
        if path is None:
            if isinstance(tensor, FakeTensor):
                raise UnreadableError("it uses a tensor made where the recorder could not see it")
            path = self._attributes[id(tensor)] = f"_constant_{len(self.constants)}"
            self.constants[path] = tensor
            self._alive.append(tensor)
        elif not isinstance(tensor, FakeTensor):
            self.constants[path] = tensor
        return path

    def _trainable(self, tensor: torch.Tensor) -> bool:
        node = self._nodes.get(id(tensor))
        if node is not None:
            return bool(node.meta.get("trainable"))
        path = self._attributes.get(id(tensor))
        return path is not None and path not in self.constants and self._original(path) is not None

    def _argument(self, value: Any) -> Any:
        """A call's argument as fx holds it: nodes for tensors, plain containers for the rest."""
        if isinstance(value, torch.Tensor):
            return self._node(value)
        if value is None or value is ... or isinstance(value, _BASE_TYPES):
            return value
        if isinstance(value, slice):
            return slice(*(self._argument(part) for part in (value.start, value.stop, value.step)))
        if isinstance(value, range):
            return value
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return tuple(self._argument(item) for item in value)
        if isinstance(value, list | tuple | torch.Size):
            return (list if isinstance(value, list) else tuple)(self._argument(item) for item in value)
        if type(value) is dict and all(isinstance(key, str) for key in value):
            return {key: self._argument(item) for key, item in value.items()}
        raise UnreadableError(f"it passes a {type(value).__name__}, which a graph cannot hold")

    def output(self, value: Any) -> Any:
        """The model's result as fx holds it; output classes are rebuilt by calling them."""
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return type(value)(self.output(item) for item in value)
        fields = fields_of(value)
        if fields is None and type(value) in (dict, OrderedDict) and all(isinstance(key, str) for key in value):
            items = {key: self.output(item) for key, item in value.items()}
            return items if type(value) is dict else self.graph.call_function(OrderedDict, (items,))
        if fields is None:
            return self._argument(value)
        kept: dict[str, Any] = {}
        for name, field in fields.items():
            try:
                kept |= {} if field is None else {name: self.output(field)}
            except UnreadableError as error:
                raise UnreadableError(
                    f"its output {name!r} is a {type(field).__name__}, which a graph cannot hold; switch it off "
                    '(for a cache: example_inputs={..., "use_cache": False})'
                ) from error
        node = self.graph.call_function(type(value), (), kept)
        node.meta.update(val=value, nn_module_stack={"": type(self.model)})
        return node
