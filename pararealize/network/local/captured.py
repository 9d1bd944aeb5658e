"""A network's runner, inputs of one size, a mode -> the captured network for calls like this one, as CUDA graphs.

Two ways: ``Whole``, one graph of the forward and one of the backward, in which segments are parallel branches, and
``Parts``, a pair of graphs for every part, replayed on its segment's stream, which works on several GPUs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils import _pytree as pytree

from pararealize.analysis.dry_run import DryRun
from pararealize.errors import CaptureError, ExampleError, ModelError, PararealizeError
from pararealize.network.module import PararealModule
from pararealize.random_state import host_state, preserve_host_state, preserve_state
from pararealize.tracing.module_copy import share_contents
from pararealize.tracing.module_view import BorrowedModule
from pararealize.tracing.operations import tensors_in

from .cuda_graph import Graphed
from .stacking import Stack
from .streams import CALLER, Runner, arguments_of, lend, make_streams

__all__ = [
    "Captured",
    "Entering",
    "Parts",
    "Whole",
    "autocast_without_cache",
    "check_hooks",
    "check_static",
    "key_of",
    "not_accepted",
    "places_of",
    "state_kept",
]


class Captured:
    """What every capture has: when it fits, and whether the tensors it was made of are still there."""

    def __init__(self, net: PararealModule, inputs: Sequence[Any]) -> None:
        self.modules = list(net.modules())
        self.flags = [module.training for module in self.modules]
        self.asked = [isinstance(value, Tensor) and value.requires_grad for value in inputs]
        self.differentiable = torch.is_grad_enabled()
        self.holders = [d for module in self.modules for d in (module._parameters, module._buffers) if d]
        self.tensors = [tensor for tensor in self._now() if tensor is not None]
        self.memory = [tensor.detach() for tensor in self.tensors]  # kept, lest graphs write into what is another's
        self.found = self._state()
        self.name = net.plan.model

    def __call__(self, inputs: Sequence[Any]) -> Any:
        """Replay; the outputs are copies, since the next call overwrites the graphs' own."""
        output = self._replay(inputs)
        self._check()
        return pytree.tree_map_only(Tensor, torch.clone, output)

    def fits(self, inputs: Sequence[Any]) -> bool:
        """Whether modes are as captured, and no gradient is asked for that would not come."""
        if self.flags != [module.training for module in self.modules]:
            return False
        if not torch.is_grad_enabled():
            return True
        asked = [isinstance(value, Tensor) and value.requires_grad for value in inputs]
        return self.differentiable and all(here or not now for now, here in zip(asked, self.asked, strict=True))

    def release(self) -> None:
        """Give the graphs' memory back."""
        for graphed in self._graphs():
            graphed.release()

    def _replay(self, inputs: Sequence[Any]) -> Any:
        raise NotImplementedError

    def _graphs(self) -> Iterable[Graphed]:
        raise NotImplementedError

    def _check(self) -> None:
        """Refuse parameters that are others than, elsewhere than or frozen otherwise than those that were captured.

        It runs after the graphs have been started, in the time that they take; they touch the old memory alone.
        """
        if self._state() != self.found:
            raise ModelError(
                f"parameters or buffers of {self.name} have been moved, replaced or frozen since its graphs were "
                "captured (to(), half(), load_state_dict(assign=True), requires_grad_()), and the graphs still use the "
                "old ones; call capture() again, or release() to run eagerly"
            )

    def _now(self) -> Iterator[Tensor | None]:
        return chain.from_iterable(d.values() for d in self.holders)

    def _state(self) -> tuple[list[int], list[int], list[bool]]:
        places = [*map(Tensor.data_ptr, self.tensors)]
        return [*map(id, self._now())], places, [tensor.requires_grad for tensor in self.tensors]


class Whole(Captured):
    """One graph of the whole forward, one of the whole backward; segments are branches that run at the same time."""

    def __init__(self, net: PararealModule, runner: Runner, inputs: Sequence[Any], *, training: bool) -> None:
        device = places_of(net)[0]
        is_tensor = [isinstance(value, Tensor) for value in inputs]
        plain = [None if isinstance(value, Tensor) else value for value in inputs]

        def function(*tensors: Tensor) -> Any:
            given = iter(tensors)
            return runner.run(*(next(given) if here else v for here, v in zip(is_tensor, plain, strict=True)))

        with _stand_ins(net) as pairs:
            self.graphed = Graphed(
                function,
                [value.detach().to(device).requires_grad_(value.requires_grad) for value in tensors_in(inputs)],
                pairs,
                stream=torch.cuda.Stream(device=device),
                branches=runner.streams or (),
                backward=training,
            )
        super().__init__(net, inputs)

    def _replay(self, inputs: Sequence[Any]) -> Any:
        return self.graphed(*tensors_in(inputs))

    def _graphs(self) -> Iterable[Graphed]:
        return (self.graphed,)


class Parts(Captured):
    """Graphs of every part, forward and backward, each replayed on its segment's stream.

    A part stays eager where it reads what is no tensor, or something on another device.
    """

    def __init__(self, net: PararealModule, runner: Runner, inputs: Sequence[Any], *, training: bool) -> None:
        entering = Entering(net, runner.graph, None)
        entering.run(*inputs)
        devices = places_of(net)
        streams = runner.streams or make_streams(devices)
        for stream in streams:  # which take these values from here
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        self.graphed: dict[fx.Node, Graphed] = {}
        with _stand_ins(net) as pairs:
            real = {id(stand_in): parameter for parameter, stand_in in pairs}
            for node, args in entering.seen.items():
                called, j = _called(net, node), runner.lanes[node]
                if j == CALLER or not called or not _is_at_home(called, args, devices[j - 1]):
                    continue
                used = dict.fromkeys(p for module in called for p in module.parameters() if id(p) in real)
                pairs = [(real[id(stand_in)], stand_in) for stand_in in used]
                function = node.target if isinstance(node.target, Stack) else called[0]
                stream = streams[j - 1]
                for value in args:
                    lend(value, stream)
                with torch.cuda.stream(stream) if runner.streams else contextlib.nullcontext():
                    self.graphed[node] = Graphed(function, args, pairs, stream=stream, backward=training)
        self.runner = Runner(net, runner.graph, runner.streams, self.graphed)
        super().__init__(net, inputs)

    def _replay(self, inputs: Sequence[Any]) -> Any:
        return self.runner.run(*inputs)

    def _graphs(self) -> Iterable[Graphed]:
        return self.graphed.values()


class Entering(Runner):
    """Runs a network once, where it is called, and keeps copies of what each part was called with."""

    def __init__(self, net: PararealModule, graph: fx.Graph, streams: None) -> None:
        super().__init__(net, graph, streams)
        self.seen: dict[fx.Node, list[Any]] = {}

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        if node.op == "call_module" or isinstance(node.target, Stack):
            args = arguments_of(node, values)
            self.seen[node] = [_copied(value) if isinstance(value, Tensor) else value for value in args]
        return super()._call(node, values)


def _copied(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_(value.requires_grad)


def _called(net: PararealModule, node: fx.Node) -> tuple[nn.Module, ...]:
    """The modules that a node of the equation runs."""
    return node.target.pieces if isinstance(node.target, Stack) else (net.get_submodule(str(node.target)),)


def _is_at_home(called: Sequence[nn.Module], args: Sequence[Any], device: torch.device) -> bool:
    """Whether a part reads tensors alone, all on its segment's device: transfers do not belong into a graph."""
    if any(isinstance(inner, BorrowedModule) for module in called for inner in module.modules()):
        return False
    read = [*args, *(t for module in called for t in (*module.parameters(), *module.buffers()))]
    return all(isinstance(value, Tensor) and value.device == device for value in read)


@contextlib.contextmanager
def _stand_ins(net: PararealModule) -> Iterator[list[tuple[nn.Parameter, nn.Parameter]]]:
    """Parameters over the same memory in the place of the network's own, in pairs (own, stand-in), while capturing.

    Autograd runs a parameter's last step on the stream on which it was first used, and its hooks whenever a gradient is
    computed; new ones have neither a past on other streams nor hooks.
    """
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    replaced: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter]] = []
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                stand_in = nn.Parameter(parameter.detach())
                _, stand_in = made.setdefault(id(parameter), (parameter, stand_in))
                replaced.append((module._parameters, name, parameter))
    for holder, name, parameter in replaced:
        holder[name] = made[id(parameter)][1]
    try:
        yield list(made.values())
    finally:
        for holder, name, parameter in replaced:
            holder[name] = parameter
    if any(parameter.data_ptr() != stand_in.data_ptr() for parameter, stand_in in made.values()):
        raise CaptureError(
            f"{net.plan.model} moves its parameters to other memory while it runs, as recurrent layers may; run it "
            "with run_local alone, or let it settle with a forward before the capture"
        )


# ------------------------------------------------------------------------------------------------- before and around


def key_of(training: bool, inputs: Sequence[Any]) -> Any:
    """What has to be equal for a captured graph to fit: mode, autocast, sizes, types and plain values."""
    given = tuple((value.shape, value.dtype) if isinstance(value, Tensor) else repr(value) for value in inputs)
    autocast = torch.is_autocast_enabled("cuda")
    return training, torch.get_autocast_dtype("cuda") if autocast else None, given


def places_of(net: PararealModule) -> list[torch.device]:
    """Where each segment is."""
    if net.devices is not None:  # torch.device("cuda") is the current GPU, which tensors call by its number
        return [torch.empty(0, device=device).device for device in net.devices]
    return [next(net.parameters()).device] * net.plan.n


def check_hooks(net: PararealModule) -> None:
    """Refuse hooks of modules: they are Python, of which a graph would keep what they did once.

    Raises:
        CaptureError: there are some; says where.
    """
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    pieces = (net, net.stem, net.head, *net.segments.values(), *filter(None, [net.context]))
    named = {id(m): (name or type(m).__name__, m) for piece in pieces for name, m in piece.named_modules()}
    hooked = [name for name, module in named.values() if any(getattr(module, kind) for kind in kinds)]
    if hooked:
        more = f" and {len(hooked) - 3} more" if len(hooked) > 3 else ""
        raise CaptureError(
            f"{net.plan.model} has hooks, which would not run in a CUDA graph: on {', '.join(hooked[:3])}{more}; "
            "remove them, or put them on parameters, where they do run"
        )


def check_static(net: PararealModule, inputs: Sequence[Any]) -> None:
    """Run the network on fake tensors, which have no values: what asks for one cannot be captured.

    Raises:
        CaptureError: something does, or draws random numbers from Python or NumPy.
        ExampleError: the network does not accept the inputs.
    """
    before = host_state()
    with preserve_host_state(), FakeTensorMode(allow_non_fake_inputs=True):

        def fake(tensor: Tensor) -> Tensor:
            return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device)

        values = [fake(value) if isinstance(value, Tensor) else value for value in inputs]
        try:
            DryRun(_Plain(net), values, fake).forward()
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise CaptureError(
                f"{net.plan.model} asks the GPU for values while it runs ({error}), which a CUDA graph cannot; run it "
                "with run_local alone, or take out what depends on values"
            ) from error
        except (RuntimeError, TypeError, ValueError) as error:
            raise not_accepted(net, error) from error
        drawn = host_state() != before
    if drawn:
        raise CaptureError(
            f"{net.plan.model} draws random numbers from Python or NumPy while it runs, of which a CUDA graph would "
            "keep the first ones; draw them with torch, or run it with run_local alone"
        )


class _Plain(nn.Module):
    """The network's parts under its own names, run one after the other."""

    def __init__(self, net: PararealModule) -> None:
        super().__init__()
        share_contents(self, net)
        self.__dict__["run"] = Runner(net, net.graph, None).run

    def forward(self, *inputs: Any) -> Any:
        return self.__dict__["run"](*inputs)


def not_accepted(net: PararealModule, error: Exception) -> PararealizeError:
    """The error of an example that does not run."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ExampleError(f"{net.plan.model} does not accept the example inputs: {reason}; pass a batch that it runs on")


@contextlib.contextmanager
def state_kept(net: PararealModule) -> Iterator[None]:
    """Put back, on leaving, what a run moves on: buffers and random states. Gradients must not be touched within."""
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    with preserve_state(places_of(net)):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


@contextlib.contextmanager
def autocast_without_cache() -> Iterator[None]:
    """The caller's autocast, whose cache of weights would outlive a capture."""
    if not torch.is_autocast_enabled("cuda"):
        yield
        return
    with torch.autocast("cuda", dtype=torch.get_autocast_dtype("cuda"), cache_enabled=False):
        yield
