"""A stand-in for CUDA's streams, events and graphs on the CPU, for tests of what is asked of them, and in which order.

Operations run at once, on whatever stream is current. Each stream knows what comes before its next operation (a set of
operations, as vector clocks do), and so the double sees what a GPU would not report:

- a race: an operation reads or writes memory that another one writes, and nothing orders the two;
- memory that is handed back too early: an operation reads, on one stream, what was allocated on another, and nobody has
  told the allocator;
- captures with streams that were never forked from the capturing one, or not joined again.

A captured graph is a list of operations; a replay runs them again on the same memory. What a capture itself computed is
overwritten with NaN, since a GPU computes nothing while it captures.

The backward pass runs on the current stream here, unchecked: that autograd changes streams is not emulated.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes


class Stream:
    def __init__(self, name: str) -> None:
        self.device, self.name, self.before = torch.device("cpu"), name, set[int]()

    def record_event(self) -> frozenset[int]:
        return frozenset(self.before)

    def wait_event(self, event: frozenset[int]) -> None:
        self.before |= event

    def wait_stream(self, stream: Stream) -> None:
        self.before |= stream.before

    def __repr__(self) -> str:
        return self.name


class Event:
    """A moment of the host: operations are done when they are issued."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.enable_timing, self.seconds = enable_timing, 0.0

    def record(self, stream: Any = None) -> None:
        self.seconds = time.perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        assert self.enable_timing
        assert end.enable_timing
        return (end.seconds - self.seconds) * 1e3


class Graph:
    """Operations, and the memory that they write or only read."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.writes: set[int] = set()
        self.reads: set[int] = set()
        self.replays, self.is_reset = 0, False

    def replay(self) -> None:
        assert self.operations, "a graph is replayed that was not captured, or is reset"
        self.replays += 1
        self.machine.run("graph", self.reads - self.writes, self.writes, self.writes)
        with torch.no_grad(), _disable_current_modes():
            for function, args, kwargs, result in self.operations:
                again = function(*args, **kwargs)
                for old, new in zip(pytree.tree_leaves(result), pytree.tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.data.copy_(new)

    def reset(self) -> None:
        self.operations, self.is_reset = [], True


class Machine(TorchDispatchMode):
    """The GPU: runs operations, knows the current stream, and looks for races."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[Stream] = []
        self.done: set[int] = set()
        self.graphs: list[Graph] = []
        self.current = [self.make_stream()]
        self.capturing: Graph | None = None
        self.used: set[Stream] = set()
        self.numbers = itertools.count()
        self.writer: dict[int, tuple[int, Stream]] = {}
        self.readers: dict[int, set[int]] = {}
        self.home: dict[int, Stream] = {}
        self.lent: set[tuple[int, Stream]] = set()
        self.kept: list[torch.UntypedStorage] = []  # memory that is never given back has one address each
        self.faults: list[str] = []

    def make_stream(self, device: Any = None) -> Stream:
        self.streams.append(stream := Stream(f"stream {len(self.streams)}"))
        stream.before |= self.done
        return stream

    def make_graph(self) -> Graph:
        self.graphs.append(Graph(self))
        return self.graphs[-1]

    def synchronize(self, device: Any = None) -> None:
        self.done = set().union(*(stream.before for stream in self.streams))
        for stream in self.streams:
            stream.before |= self.done

    def lend(self, tensor: Tensor, stream: Stream) -> None:
        self.lent |= {(memory, stream) for memory in _memories(tensor)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        taken, given = _memories((args, kwargs)), _memories(result)
        declared = [argument.alias_info for argument in func._schema.arguments]
        changed = [value for value, alias in zip(args, declared, strict=False) if alias is not None and alias.is_write]
        changed += [args[3:5]] if "batch_norm" in str(func) and "backward" not in str(func) else []
        self.kept += [leaf.untyped_storage() for leaf in pytree.tree_leaves(result) if type(leaf) is Tensor]
        for memory in _memories([value for value in args if isinstance(value, torch.nn.Parameter)]):
            self.home.pop(memory, None)  # it is given back between steps alone
        if not _only_looks(func):
            self.run(str(func), taken, _memories(changed), given - taken)
        if self.capturing is not None:
            self.capturing.operations.append((func, args, kwargs, result))
            self.capturing.reads |= taken
            self.capturing.writes |= _memories(changed) | (given - taken)
            self.used.add(self.current[-1])
        return result

    def run(self, what: str, reads: set[int], writes: set[int], fresh: set[int]) -> None:
        """One operation on the current stream: is all that it touches ordered before it?"""
        stream, number = self.current[-1], next(self.numbers)
        backward = torch._C._current_graph_task_id() != -1
        for memory in reads | writes:
            number_of_writer, where = self.writer.get(memory, (None, None))
            home = self.home.get(memory, stream)
            if backward:
                continue
            if number_of_writer is not None and number_of_writer not in stream.before:
                self.faults.append(f"{what} on {stream} does not wait for what {where} writes")
            if memory in writes and not self.readers.get(memory, set()) <= stream.before:
                self.faults.append(f"{what} on {stream} overwrites what another stream reads")
            if home is not stream and (memory, stream) not in self.lent and memory not in fresh:
                self.faults.append(f"{what} on {stream} uses memory of {home}, and the allocator does not know")
        for memory in writes | fresh:
            self.writer[memory] = number, stream
            self.readers.pop(memory, None)
        if what != "graph":  # whose pool keeps the memory
            self.home |= dict.fromkeys(fresh, stream)
        for memory in reads:
            self.readers.setdefault(memory, set()).add(number)
        stream.before.add(number)

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.current.append(stream)
        try:
            yield
        finally:
            self.current.pop()

    @contextlib.contextmanager
    def graph(
        self, graph: Graph, pool: Any = None, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        assert capture_error_mode == "thread_local", "any thread that pins memory would break the capture"
        assert self.capturing is None, "two captures at once"
        assert stream is not None
        self.synchronize()
        self.capturing, self.used, begun = graph, set(), next(self.numbers)
        stream.before.add(begun)
        found = dict(self.writer), {memory: set(readers) for memory, readers in self.readers.items()}, dict(self.home)
        try:
            with self.stream(stream):
                yield
            for used in self.used:
                assert begun in used.before, f"{used} was not forked from the capturing stream"
                assert used.before <= stream.before, f"{used} has unjoined work"
        finally:
            self.capturing = None
        self.writer, self.readers, self.home = found  # nothing of it has happened
        with _disable_current_modes(), torch.no_grad():
            for _, args, kwargs, result in graph.operations:
                taken = _memories((args, kwargs))
                for leaf in pytree.tree_leaves(result):
                    if isinstance(leaf, Tensor) and leaf.is_floating_point() and not _memories(leaf) & taken:
                        leaf.data.fill_(float("nan"))


def _only_looks(func: Any) -> bool:
    """Whether an operation reads no memory: views, and what takes only the size of its argument."""
    returns = [alias for value in func._schema.returns if (alias := value.alias_info) is not None]
    return any(not alias.is_write for alias in returns) or "_like." in str(func)


def _memories(values: Any) -> set[int]:
    leaves = [leaf for leaf in pytree.tree_leaves(values) if type(leaf) in (Tensor, torch.nn.Parameter)]
    return {leaf.untyped_storage().data_ptr() for leaf in leaves if leaf.device.type == "cpu" and leaf.numel()}


@contextlib.contextmanager
def cuda_on_the_cpu() -> Iterator[Machine]:
    """``torch.cuda`` as far as the package uses it, with networks on the CPU taken for networks on a GPU."""
    machine = Machine()
    doubles = {
        "torch.cuda.Stream": machine.make_stream,
        "torch.cuda.stream": machine.stream,
        "torch.cuda.current_stream": lambda device=None: machine.current[-1],
        "torch.cuda.CUDAGraph": machine.make_graph,
        "torch.cuda.graph": machine.graph,
        "torch.cuda.graph_pool_handle": object,
        "torch.cuda.Event": Event,
        "torch.cuda.empty_cache": lambda: None,
        "torch.cuda.reset_peak_memory_stats": lambda: None,
        "torch.cuda.max_memory_reserved": lambda: 0,
        "torch.cuda.synchronize": machine.synchronize,
        "torch.cuda.device": lambda device: contextlib.nullcontext(),
        "pararealize.network.local.streams.lend": machine.lend,
        "pararealize.network.local.graphed_network.lend": machine.lend,
        "pararealize.network.local.cuda_graph.lend": machine.lend,
        "pararealize.network.local.graphed_call.lend": machine.lend,
        "pararealize.network.local.graphed_step.lend": machine.lend,
        "pararealize.network.local.graphed_stage.lend": machine.lend,
        "pararealize.network.local.module._is_gpu": lambda device: device.type == "cpu",
    }
    with contextlib.ExitStack() as stack:
        for name, double in doubles.items():
            stack.enter_context(mock.patch(name, double))
        with machine:
            yield machine
    assert not machine.faults, "\n".join(dict.fromkeys(machine.faults))
