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
import functools
import itertools
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.amp import autocast_mode
from torch.fx.experimental.proxy_tensor import PreDispatchTorchFunctionMode
from torch.overrides import TorchFunctionMode

from pararealize.random_state import host_state, others_draw, preserve_own_host_state
from pararealize.restore import as_written, attributes_as_found

from .autograd_calls import AutogradCalls
from .captured import CHANGES_ITSELF
from .example import Example
from .fake_copy import FakeCopy
from .leaves import is_layer, is_one_call
from .mode_flag import ModeFlag, without_flags
from .node_table import NodeTable, UnreadableError
from .operations import CACHED, computed_calls, describe, tensors_in
from .python_state import names_host_random
from .regions import RegionTracker, is_of_checkpoint
from .size_checks import SizeChecks
from .sizes import Sizes
from .state_watch import StateWatch

__all__ = ["Trace", "record"]

_TURN = 1.0  # seconds in which a thread that draws again and again has had its turn, on a busy machine too
_PYTHON_CALLERS = ("apply_", "map_", "map2_")  # on a fake tensor they read memory that is not there, and crash
_VALUE_READERS = (torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.__int__, torch.Tensor.__float__)
_TYPE_READERS = (
    torch.Tensor.dtype.__get__,  # type: ignore[attr-defined]
    torch.Tensor.is_floating_point,
    torch.is_floating_point,
    torch.Tensor.type,
    torch.Tensor.element_size,
    torch.Tensor.itemsize.__get__,  # type: ignore[attr-defined]
)
_AUTOCAST = (autocast_mode._enter_autocast, autocast_mode._exit_autocast)
_Call: TypeAlias = tuple[str, Any, Any, Any]  # op and target as fx writes them, and the Python arguments and keywords


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one pass did.

    Attributes:
        graph: the calls, in the order in which they were made.
        constants: tensors of the model that are neither parameters nor buffers, by the names that the graph reads.
        sizes: the symbols that stand for sizes of inputs in it, and what was decided on them.
        reads_types: whether the model asked a tensor for its element type.
    """

    graph: fx.Graph
    constants: dict[str, torch.Tensor]
    sizes: Sizes
    reads_types: bool


def record(
    copy: FakeCopy,
    example: Example,
    *,
    batch: int,
    training: bool,
    opaque: Callable[[str, nn.Module], bool],
    free: Collection[tuple[str, int]] = (),
    checked: set[Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Trace:
    """Run the model's forward once and return what happened.

    Args:
        copy: the model's copy on fake tensors; its Python state is put back afterwards.
        example: its inputs.
        batch: takes the place of the example's batch size, where it has one.
        training: the mode to record in.
        opaque: whether the module of a qualified name is to be one node.
        free: the inputs' axes whose sizes are symbols, by name and number.
        checked: calls whose sizes were checked in another recording with the same symbols.
        dtype: takes the place of every floating-point type of inputs, parameters and buffers.

    Raises:
        UnreadableError, or whatever the forward raises; ``error.pararealize_stack`` lists the modules it was raised in.
    """
    sizes = Sizes()
    leaves = copy.leaves
    leaves.mode.shape_env, leaves.sizes = sizes.env, sizes
    with attributes_as_found(copy.model.modules()), preserve_own_host_state(), copy.cast(dtype):
        for module in copy.model.modules():  # module.train() would reach it too, but a model may have overridden it
            module.training = training
        checks = SizeChecks(sizes, leaves.empty, set() if checked is None else checked, lambda: leaves.repeated)
        recorder = _Recorder(copy, opaque, checks, dtype)
        try:
            recorder.run(example, batch, free)
        except Exception as error:
            if ModeFlag.__name__ not in str(error):
                raise
            recorder = _Recorder(
                copy, opaque, checks, dtype
            )  # a function of torch's C takes a flag only if it is a bool
            recorder.tells_flags = False
            recorder.run(example, batch, free)

        def does_the_same(cached: Sequence[torch.Tensor]) -> bool:
            again = _Recorder(copy, opaque, checks, dtype)
            again.tells_flags = recorder.tells_flags
            for i, tensor in enumerate(cached):
                again.table.add_constant(tensor, f"{CACHED}{i}")
            again.run(example, batch, free)
            return computed_calls(again.graph) == computed_calls(recorder.graph)

        recorder.state.check(recorder.table.is_computed, does_the_same)
        constants = {name: copy.leaves.real.get(id(value), value) for name, value in recorder.table.constants.items()}
        return Trace(graph=recorder.graph, constants=constants, sizes=sizes, reads_types=recorder.reads_types)


class _Recorder(PreDispatchTorchFunctionMode):
    """Writes down what a forward pass does while it listens.

    It is a mode of torch's of the kind that is told of autocast regions, besides functions and grad modes; torch keeps
    modes by thread. Each module of the copy is told to call the recorder. So nothing of torch is replaced, and other
    threads notice nothing.

    Attributes:
        stack: the modules whose calls are under way, outermost first, with their names.
        calls: for each of them, the number of its call: a module called twice gives two.
        flags: for each of them, whose training flag its own code read last, if any.
        tells_flags: whether training flags are values that tell when they are read.
        types: for every element type that the model read, the tensor that it read it from last.
        reads_types: whether it read any.
        paused: while a call that is already one node runs, what happens within it is not recorded.
        regions: the grad modes, autocast regions and checkpoints that the forward is in.
        state: the Python state that the forward may change.
    """

    def __init__(
        self,
        copy: FakeCopy,
        opaque: Callable[[str, nn.Module], bool],
        checks: SizeChecks,
        dtype: torch.dtype | None = None,
    ) -> None:
        TorchFunctionMode.__init__(self)  # and not the parent's, which wants a tracer of torch's own
        self.copy, self.leaves, self.opaque, self.checks = copy.model, copy.leaves, opaque, checks
        self.graph = fx.Graph()
        self.table = NodeTable(self.graph, copy.model)
        for tensor, path in copy.attributes.values():
            self.table.add_attribute(tensor, path)
        for path, tensor in copy.constants.items():
            self.table.add_constant(tensor, path)
        # no method of the recorder's: what keeps the copy in a cycle keeps it until the garbage is collected
        self.state = StateWatch(copy.model, functools.partial(is_one_call, opaque))
        self.stack: list[tuple[str, nn.Module]] = []
        self.calls: list[int] = []
        self.types: dict[torch.dtype, fx.Node] = {}
        self.reads_types = False
        self._dtype = dtype
        self.flags: list[str | None] = []
        self.tells_flags = True
        self.paused = False
        self.regions = RegionTracker()
        self.autograd_calls = AutogradCalls(self.table, copy.model, copy.leaves.real)
        self._numbers = itertools.count()

    # Setting up -----------------------------------------------------------------------------------------------------

    def placeholder(
        self, name: str, value: Any, rows: tuple[int | None, int], free: Collection[tuple[str, int]], *, required: bool
    ) -> Any:
        """Write a placeholder and return what the forward is called with: a fake tensor, or the plain value.

        A leading dimension of the first of ``rows``, the example's batch, is replaced by the second.
        """
        if not isinstance(value, torch.Tensor):
            node = self.graph.placeholder(name) if required else self.graph.placeholder(name, default_value=value)
            node.meta["plain"] = value
            return value
        has_rows = value.shape[:1] == rows[:1]
        shape = (rows[1], *value.shape[1:]) if has_rows else value.shape
        symbol = self.checks.sizes.symbol
        size = [
            symbol(name, axis, n, batch=has_rows and axis == 0) if (name, axis) in free else n
            for axis, n in enumerate(shape)
        ]
        with self.leaves.mode:
            dtype = self._dtype if self._dtype is not None and value.is_floating_point() else value.dtype
            fake = torch.empty(size, dtype=dtype, device=value.device)
        self.table.add_input(fake, self.graph.placeholder(name))
        return fake

    def run(self, example: Example, batch: int, free: Collection[tuple[str, int]]) -> None:
        """Call the model once, with fake tensors of that batch size, and write down what happens."""
        last = max(i for i, value in enumerate(example.values.values()) if isinstance(value, torch.Tensor))
        args, kwargs = example.arguments(
            {
                # fx wants parameters without a default first: a plain value before the last tensor must have none
                name: self.placeholder(name, value, (example.batch, batch), free, required=i < last)
                for i, (name, value) in enumerate(example.values.items())
            }
        )
        sizes = self.checks.sizes
        with self.leaves.mode, enable_python_dispatcher(), self.listening():
            sizes.inner = None
            output = self.copy(*args, **kwargs)
            sizes.inner = {}
            self.regions.finish()
            self.graph.output(self.table.output(output))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, what this thread calls of torch, and of the copy's modules, comes to this recorder."""
        modules = dict(self.copy.named_modules())
        for path, module in modules.items():
            # what ``module(...)`` calls where it is not None; ``torch.compile`` puts compiled code there
            module.__dict__["_compiled_call_impl"] = functools.partial(self.call_module, path, module)
        flags = {module: bool(module.training) for module in modules.values()}
        for path, module in modules.items():  # outer ones first
            outer = path.rpartition(".")[0]
            is_within_call = path and type(modules[outer].__dict__["training"]) is not ModeFlag
            is_call = is_within_call or is_layer(module) or (path and is_one_call(self.opaque, path, module))
            if self.tells_flags and not is_call:  # within one call, a flag is only a flag
                module.__dict__["training"] = ModeFlag(flags[module], path, self._flag_was_read)
        try:
            with self, as_written():
                yield
        finally:
            for module, flag in flags.items():
                module.__dict__.pop("_compiled_call_impl", None)
                module.__dict__["training"] = flag

    def _flag_was_read(self, path: str) -> None:
        if self.flags and not self.paused:
            self.flags[-1] = path

    # What happens while the forward runs ----------------------------------------------------------------------------

    def call_module(self, path: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call a module of the model: a leaf becomes one node, of another one the calls within are recorded."""
        if self.paused:
            return module._call_impl(*args, **kwargs)
        self.stack.append((path, module))
        self.flags.append(None)
        self.calls.append(next(self._numbers))
        try:
            if path and is_one_call(self.opaque, path, module):
                with torch._C.DisableTorchFunction():
                    return self._call_leaf(path, module, args, kwargs)
            before = host_state()
            result = module._call_impl(*args, **kwargs)
            self._check_side_effects(module, before)
            return result
        except Exception as error:
            if not hasattr(error, "pararealize_stack"):  # the innermost call is the one that says most
                error.pararealize_stack = tuple(self.stack)  # type: ignore[attr-defined]
            raise
        finally:
            self.stack.pop()
            self.flags.pop()
            self.calls.pop()

    def _call_leaf(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        call = "call_module", path, args, kwargs
        args, kwargs = without_flags(args), without_flags(kwargs)
        if is_layer(module):
            return self._emit(call, self._checked(module, functools.partial(self.leaves.call, module), args, kwargs))
        self.state.enter(path, module)
        result = self._emit(call, self._checked(module, functools.partial(self.leaves.call, module), args, kwargs))
        self.state.leave(path, module)
        return result

    def _check_side_effects(self, module: nn.Module, before: tuple[Any, ...]) -> None:
        """Refuse what a module did besides computing with tensors, which a graph would do once and never again.

        A number from Python or NumPy comes to the recorder as a constant. A new tensor in the place of a buffer does
        not come to it at all, since an assignment is no call: a module's buffers are looked at when it returns, and
        those of all modules when the model does, for a module may assign to another one's.
        """
        # another thread may draw from them all the time, when it has its turn: then the module's own code tells
        if host_state() != before and (names_host_random(module) or not others_draw(_TURN)):
            raise UnreadableError("it draws random numbers from Python or NumPy, which a graph would freeze")
        for owner in [module] if module is not self.copy else self.copy.modules():
            if any(buffer is not None and self.table.is_computed(buffer) for buffer in owner._buffers.values()):
                raise UnreadableError("it assigns new values to its own buffers outside torch.nn's modules")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every call of torch with a tensor, and every factory, made outside leaves."""
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled:
            if not self.paused:
                self.regions.set_grad_enabled(bool(args[0]), sys._getframe(1))
            return func(*args)
        if func in _AUTOCAST:  # which has been switched already
            if not self.paused:
                self.regions.exit_autocast() if func is _AUTOCAST[1] else self.regions.enter_autocast(*args)
            return None
        if self.paused or is_of_checkpoint(sys._getframe(1)):
            return func(*args, **kwargs)
        if func in _TYPE_READERS:
            self._note_type(args[0])
        if func in _VALUE_READERS:  # fake tensors raise in these: a value decides what happens next
            return func(*args, **kwargs)
        if getattr(func, "__name__", "") in _PYTHON_CALLERS:
            raise UnreadableError(f"it calls a Python function on each value (Tensor.{func.__name__})")
        if (answer := self.autograd_calls.answer(func, args, sys._getframe(1))) is not None:
            return answer[0]
        # Within the call, torch's own Python (nn.functional) calls torch again; the call is one node all the same.
        with torch._C.DisableTorchFunction():
            plain = without_flags(args), without_flags(kwargs)
            run = self._checked(func, functools.partial(self.leaves.call_function, func), *plain)
            return self._emit((*describe(func, args), kwargs), run)

    def _note_type(self, tensor: torch.Tensor) -> None:
        """Remember the tensor that the model reads an element type from."""
        with torch._C.DisableTorchFunction():
            self.reads_types = True
            if tensor.is_floating_point():
                self.types = {**self.types, tensor.dtype: self.table.node(tensor)}

    def _checked(self, target: Any, run: Callable[[Any, Any], Any], args: Any, kwargs: Any) -> Callable[[], Any]:
        """A call that finds the conditions on sizes under which it gives what it gives."""
        return functools.partial(self.checks.call, target, run, args, kwargs)

    def _emit(self, call: _Call, run: Callable[[], Any]) -> Any:
        """Run one call and write it down, unless it neither makes nor changes a tensor.

        What changed in place is told by the version counters, which autograd keeps for that very purpose: names that
        end in an underscore would miss ``out=``, ``x[i] = y`` and what a leaf module does.
        """
        if not self.regions.look():
            return run()
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():  # tensors whose changes autograd counts
                return self._run(call, run)
        return self._run(call, run)

    def _run(self, call: _Call, run: Callable[[], Any]) -> Any:
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
            raise UnreadableError(CHANGES_ITSELF)
        node = self.graph.create_node(op, target, table.argument(tuple(args)), table.argument(dict(kwargs)))
        node.meta["nn_module_stack"] = {path: type(module) for path, module in self.stack}
        node.meta["calls"] = tuple(self.calls)
        node.meta["types"] = self.types
        node.meta["trainable"] = op == "call_module" or any(map(table.is_trainable, inputs))
        node.meta["region"] = self.regions.region
        node.meta["flag"] = next((path for path in reversed(self.flags) if path is not None), None)
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
