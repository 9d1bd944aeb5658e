"""One forward pass on fake tensors -> an fx graph of module calls and functions, with qualified names.

The real Python forward runs once, on tensors that have shapes but no memory, under a ``TorchFunctionMode`` with
``nn.Module.__call__`` intercepted. Python itself runs, so control flow on shapes, dictionaries, keyword arguments and
output classes need no special care; what depends on *values* raises, and the raise names its place.

    leaf module called      ->  call_module    (torch.nn's own modules, and what is named as opaque)
    torch function called   ->  call_function
    tensor method called    ->  call_method, or the function of :mod:`operator`
    parameter or buffer     ->  get_attr

Which node a tensor is the value of, after all that happened to it, is kept in ``node_table.py``. What one recording
bakes in (the mode, the batch size) is found by comparing two: see ``front_end.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from pararealize.random_state import host_state
from pararealize.restore import as_written, left_as_found

from .example import Example
from .leaves import Leaves, is_from_torch
from .node_table import NodeTable, UnreadableError
from .operations import describe, tensors_in

__all__ = ["Trace", "record"]

_TRANSPARENT = (  # modules of torch.nn that are containers: what they call is recorded, and not they
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
)
_VALUE_READERS = (torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.__int__, torch.Tensor.__float__)
_PATCHES = threading.RLock()  # what a recording replaces in torch is there once for all threads
_Call: TypeAlias = tuple[str, Any, Any, Any]  # op and target as fx writes them, and the Python arguments and keywords


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one pass did.

    Attributes:
        graph: the calls, in the order in which they were made.
        constants: tensors of the model that are neither parameters nor buffers, by the names that the graph reads.
    """

    graph: fx.Graph
    constants: dict[str, torch.Tensor]


def record(
    model: nn.Module, example: Example, *, batch: int, training: bool, opaque: Callable[[str, nn.Module], bool]
) -> Trace:
    """Run the model's forward once and return what happened.

    Args:
        model: the model, put back as found.
        example: its inputs.
        batch: takes the place of the example's batch size, where it has one.
        training: the mode to record in.
        opaque: whether the module of a qualified name is to be one node.

    Raises:
        UnreadableError, or whatever the forward raises; ``error.pararealize_stack`` lists the modules it was raised in.
    """
    # Tensors that a model keeps as plain attributes stay real, and calls on them and on fake ones are allowed.
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    with left_as_found(model, contents=False):
        recorder = _Recorder(model, fake_mode, opaque)
        for module in model.modules():  # module.train() would reach it too, but a model may have overridden train()
            module.training = training
        recorder.swap_parameters()
        last = max(i for i, value in enumerate(example.values.values()) if isinstance(value, torch.Tensor))
        fakes = {
            # fx wants parameters without a default first: a plain value before the last tensor must have none
            id(value): recorder.placeholder(name, value, (example.batch, batch), required=i < last)
            for i, (name, value) in enumerate(example.values.items())
        }
        args, kwargs = tree_map(lambda value: fakes.get(id(value), value), (example.args, example.kwargs))
        with fake_mode, recorder.listening():
            output = model(*args, **kwargs)
            recorder.graph.output(recorder.table.output(output))
        return Trace(graph=recorder.graph, constants=recorder.table.constants)


class _Recorder(TorchFunctionMode):
    """Writes down what a forward pass does while it listens.

    Attributes:
        stack: the modules whose calls are under way, outermost first, with their names.
        calls: for each of them, the number of its call: a module called twice gives two.
        paused: while a call that is already one node runs, what happens within it is not recorded.
    """

    def __init__(self, model: nn.Module, fake_mode: FakeTensorMode, opaque: Callable[[str, nn.Module], bool]) -> None:
        super().__init__()
        self.model, self.fake_mode, self.opaque = model, fake_mode, opaque
        self.leaves = Leaves(fake_mode)
        self.graph = fx.Graph()
        self.table = NodeTable(self.graph, model)
        self.names = {id(module): name for name, module in model.named_modules()}
        self.stack: list[tuple[str, nn.Module]] = []
        self.calls: list[int] = []
        self.paused = False
        self._numbers = itertools.count()

    # Setting up -----------------------------------------------------------------------------------------------------

    def swap_parameters(self) -> None:
        """Replace every parameter and buffer by a fake one and remember its name; tied ones by one fake tensor."""
        fakes: dict[int, torch.Tensor] = {}
        for path, module in self.model.named_modules():
            prefix = f"{path}." if path else ""
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in fakes:
                        fake = fakes[id(tensor)] = self.leaves.fake(tensor)
                        self.leaves.real[id(fake)] = tensor
                        self.table.add_attribute(fake, prefix + name)
                    tensors[name] = fakes[id(tensor)]
            for name, value in module.__dict__.items():
                if isinstance(value, torch.Tensor):
                    self.table.add_constant(value, prefix + name)

    def placeholder(self, name: str, value: Any, sizes: tuple[int | None, int], *, required: bool) -> Any:
        """Write a placeholder and return what the forward is called with: a fake tensor, or the plain value.

        A leading dimension of the first of ``sizes``, the example's batch, is replaced by the second.
        """
        if not isinstance(value, torch.Tensor):
            node = self.graph.placeholder(name) if required else self.graph.placeholder(name, default_value=value)
            node.meta["plain"] = value
            return value
        size = (sizes[1], *value.shape[1:]) if value.shape[:1] == sizes[:1] else value.shape
        with self.fake_mode:
            fake = torch.empty(size, dtype=value.dtype, device=value.device)
        self.table.add_input(fake, self.graph.placeholder(name))
        return fake

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, what this thread calls comes to this recorder.

        No mode of torch sees modules, custom autograd functions and autocast regions, so three methods are replaced, as
        ``torch.fx.Tracer.trace`` does with ``nn.Module.__call__``. They are replaced for the whole process: what other
        threads call goes straight on, and of several recordings one waits for the other.
        """
        with _PATCHES, self._patches(threading.get_ident()), self, as_written():
            yield

    @contextlib.contextmanager
    def _patches(self, thread: int) -> Iterator[None]:
        plain_call, plain_apply = nn.Module.__call__, torch.autograd.Function.__dict__["apply"]
        enter: Callable[[Any], Any] = torch.amp.autocast_mode.autocast.__enter__
        fast_attention = torch.backends.mha.get_fastpath_enabled()

        def ignored() -> bool:
            return self.paused or threading.get_ident() != thread

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = None if ignored() else self.names.get(id(module))
            if path is None:
                return plain_call(module, *args, **kwargs)
            return self.call_module(plain_call, path, module, args, kwargs)

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if ignored():
                return plain_apply.__get__(None, cls)(*args, **kwargs)
            # its forward could be recorded, but its backward is Python that no graph of the forward holds
            raise UnreadableError(f"it applies the custom autograd function {cls.__name__}")

        def autocast(region: Any) -> Any:
            if not ignored() and len(self.stack) > 1:
                raise UnreadableError("it switches autocast inside its forward")
            return enter(region)

        nn.Module.__call__ = call  # type: ignore[method-assign]
        torch.autograd.Function.apply = classmethod(apply)
        torch.amp.autocast_mode.autocast.__enter__ = autocast  # type: ignore[method-assign]
        torch.backends.mha.set_fastpath_enabled(False)  # a fused attention for eval mode alone is another structure
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_attention)
            nn.Module.__call__ = plain_call  # type: ignore[method-assign]
            torch.autograd.Function.apply = plain_apply
            torch.amp.autocast_mode.autocast.__enter__ = enter  # type: ignore[method-assign]

    # What happens while the forward runs ----------------------------------------------------------------------------

    def call_module(self, plain_call: Callable[..., Any], path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call a module of the model: a leaf becomes one node, of another one the calls within are recorded."""
        self.stack.append((path, module))
        self.calls.append(next(self._numbers))
        try:
            if path and self._is_leaf(path, module):
                with torch._C.DisableTorchFunction():
                    call = "call_module", path, args, kwargs
                    return self._emit(call, lambda: self.leaves.call(plain_call, module, args, kwargs))
            before = host_state()
            result = plain_call(module, *args, **kwargs)
            self._check_side_effects(module, before)
            return result
        except Exception as error:
            if not hasattr(error, "pararealize_stack"):  # the innermost call is the one that says most
                error.pararealize_stack = tuple(self.stack)  # type: ignore[attr-defined]
            raise
        finally:
            self.stack.pop()
            self.calls.pop()

    def _check_side_effects(self, module: nn.Module, before: tuple[Any, ...]) -> None:
        """Refuse what a module did besides computing with tensors, which a graph would do once and never again.

        A number from Python or NumPy comes to the recorder as a constant. A new tensor in the place of a buffer does
        not come to it at all, since an assignment is no call: a module's buffers are looked at when it returns, and
        those of all modules when the model does, for a module may assign to another one's.
        """
        if host_state() != before:
            raise UnreadableError("it draws random numbers from Python or NumPy, which a graph would freeze")
        for owner in [module] if module is not self.model else self.model.modules():
            if any(buffer is not None and self.table.is_computed(buffer) for buffer in owner._buffers.values()):
                raise UnreadableError("it assigns new values to its own buffers outside torch.nn's modules")

    def _is_leaf(self, path: str, module: nn.Module) -> bool:
        return self.opaque(path, module) or (is_from_torch(module) and not isinstance(module, _TRANSPARENT))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every call of torch with a tensor, and every factory, made outside leaves."""
        kwargs = kwargs or {}
        if self.paused or func in _VALUE_READERS:  # fake tensors raise in these: a value decides what happens next
            return func(*args, **kwargs)
        # Within the call, torch's own Python (nn.functional) calls torch again; the call is one node all the same.
        with torch._C.DisableTorchFunction():
            return self._emit((*describe(func, args), kwargs), lambda: func(*args, **kwargs))

    def _emit(self, call: _Call, run: Callable[[], Any]) -> Any:
        """Run one call and write it down, unless it neither makes nor changes a tensor.

        What changed in place is told by the version counters, which autograd keeps for that very purpose: names that
        end in an underscore would miss ``out=``, ``x[i] = y`` and what a leaf module does.
        """
        inputs = list(tensors_in(call[2:]))
        versions = [tensor._version for tensor in inputs]
        self.paused = True
        try:
            result = run()
        finally:
            self.paused = False
        mutations = [tensor for tensor, version in zip(inputs, versions, strict=True) if tensor._version != version]
        if not mutations and next(tensors_in(result), None) is None:
            return result
        return self._write(call, result, inputs, mutations)

    def _write(self, call: _Call, result: Any, inputs: list[torch.Tensor], mutations: list[torch.Tensor]) -> Any:
        """Write a call down; ``mutations`` are those of its inputs that it changed in place."""
        op, target, args, kwargs = call
        table = self.table
        if any(map(table.is_of_model, mutations)):
            raise UnreadableError("it changes its own parameters or buffers outside torch.nn's modules")
        if not torch.is_grad_enabled() and any(map(table.is_trainable, inputs)):
            raise UnreadableError("it switches gradients off inside its forward")
        node = self.graph.create_node(op, target, table.argument(tuple(args)), table.argument(dict(kwargs)))
        node.meta["nn_module_stack"] = {path: type(module) for path, module in self.stack}
        node.meta["calls"] = tuple(self.calls)
        node.meta["trainable"] = op == "call_module" or any(map(table.is_trainable, inputs))
        node.meta["changes"] = frozenset(map(table.memory, mutations))
        if any(result is tensor for tensor in inputs) and not any(result is tensor for tensor in mutations):
            # Returned as it came (dropout in eval mode): its own value all the same, since in train mode it is another
            # tensor. The forward goes on with a stand-in, so that later reads of the input stay reads of the input.
            stand_in = self.leaves.fake(result)
            table.set_memory(stand_in, result)
            result = stand_in
        results = list(tensors_in(result))
        for tensor in mutations:
            table.add_change(tensor, node, results)
        table.add_result(result, node, unchanged={id(t) for t in inputs} - {id(t) for t in mutations})
        return result
