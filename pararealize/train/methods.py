"""A method's name and a model -> the network that is trained, and its own training step where it has one.

    serial      the model itself, layer after layer
    parareal    the converted network, in this process or over the ranks of a mesh
    multigrid   the model with its layers solved for by multigrid, monitored on request; scores are of the model itself
    oneshot     the same, where every sample's solve begins with the values that its last one ended with

Another method is one more function and one more row of ``METHODS``.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from pararealize.analysis.finder import Granularity
from pararealize.coarse.kinds import Coarse
from pararealize.compiler import Device, pararealize
from pararealize.errors import DeviceError, DistributedError, MultigridError, PlanError
from pararealize.multigrid.distributed.stage import LayerStage
from pararealize.multigrid.module import LayerParallel, layer_parallel
from pararealize.multigrid.monitor import SETTINGS, Monitor
from pararealize.plan.plan import Plan
from pararealize.planning.arguments import device_fault
from pararealize.planning.window_arguments import Sequential, Windows

from .steps import MonitoredStep, TrainingStep, one_shot_step

__all__ = ["METHODS", "Built", "Options", "build"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a network is built with; each method takes what concerns it.

    ``example_inputs`` and the options after it, up to ``plan``, are those of :func:`~pararealize.pararealize`.

    Args:
        n: how many segments.
        example_inputs: a batch to trace the model with.
        coarse: kind of the coarse blocks.
        cuts: where segments begin.
        source: what adapters read.
        windows: how many windows there are, or where they begin.
        sequential: how many of the first blocks, or which ones, run as in the original, or ``"auto"``.
        granularity: what blocks are.
        cost: what the cuts balance.
        devices: the devices to run on, in one process.
        seed: of new weights.
        leaf_modules: modules that tracing does not enter.
        plan: a plan to follow, instead of ``n`` and the options that plans are made of.
        mesh: the ranks to run on, instead of this process alone.
        timeout: time limit of every message between ranks, in seconds.
        more: options that one method alone has, by name.
    """

    n: int | None = None
    example_inputs: Any = None
    coarse: Coarse | None = None
    cuts: Any = None
    source: Any = None
    windows: Windows | None = None
    sequential: Sequential | None = None
    granularity: Granularity | None = None
    cost: Any = None
    devices: Sequence[Device] | None = None
    seed: int = 0
    leaf_modules: Iterable[type[nn.Module] | str] = ()
    plan: Plan | None = None
    mesh: DeviceMesh | None = None
    timeout: float = 600.0
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What :func:`~pararealize.fit` trains.

    Attributes:
        net: the network.
        step: its own forward and backward; ``None`` for the usual ones.
    """

    net: nn.Module
    step: TrainingStep | None = None


def build(method: str, model: nn.Module, options: Options) -> Built:
    """The network that a method trains instead of a model.

    Args:
        method: a name of ``METHODS``.
        model: left as found; ``"serial"`` trains it itself.
        options: those that the method knows nothing of are ignored.

    Raises:
        PlanError: the method is unknown.
        PararealizeError: the model cannot be trained by this method.

    Example:
        >>> from pararealize.train import Options, build
        >>> from pararealize.models import resnet20
        >>> build("parareal", resnet20(), Options(n=3, coarse="linear")).net.plan.n
        3
    """
    if method not in METHODS:
        raise PlanError(f"no method is called {method!r}; there are {', '.join(METHODS)}")
    return METHODS[method](model, options)


def serial(model: nn.Module, options: Options) -> Built:
    """The model itself, on one device."""
    if options.mesh is not None and options.mesh.size() > 1:
        raise DistributedError(
            f"the method 'serial' trains one network in one process, and here are {options.mesh.size()}; take "
            "'parareal' (with n = 1 for data-parallel copies of the original), or start one process"
        )
    devices = options.devices or ()
    if len(devices) > 1:
        raise DeviceError(
            f"the method 'serial' runs on one device, and {len(devices)} were named ({', '.join(map(str, devices))})"
        )
    for device in devices:
        if fault := device_fault(device):
            raise DeviceError(fault)
        model = model.to(torch.device(device))
    return Built(net=model)


def parareal(model: nn.Module, options: Options) -> Built:
    """The converted network; over a mesh, this rank's stage."""
    if options.n is None and options.plan is None:
        raise PlanError("the method 'parareal' needs n, the number of segments (--n 3), or a plan")
    net = pararealize(
        model,
        options.n,
        devices=options.devices,
        example_inputs=options.example_inputs,
        coarse=options.coarse,
        cuts=options.cuts,
        source=options.source,
        windows=options.windows,
        sequential=options.sequential,
        granularity=options.granularity,
        seed=options.seed,
        cost=options.cost,
        leaf_modules=options.leaf_modules,
        plan=options.plan,
    )
    if options.mesh is None:
        return Built(net=net)
    return Built(net=net.distribute(options.mesh, timeout=options.timeout, seed=options.seed))


def multigrid(model: nn.Module, options: Options) -> Built:
    """The model with layers solved for in parallel; ``more`` goes to :func:`~pararealize.layer_parallel`.

    Over a mesh, this rank's layers. In eval mode it runs layer after layer, so that scores are of the model itself.

    In one process, ``more["monitor"]`` is ``True``, or arguments of :class:`~pararealize.multigrid.monitor.Monitor` by
    name: the step is then a :class:`~pararealize.train.steps.MonitoredStep`.
    """
    monitor_settings = _monitor_settings(options.more.get("monitor"))
    more = {name: value for name, value in options.more.items() if name != "monitor"}
    _check_more("multigrid", more)
    if options.mesh is None or options.mesh.size() == 1:
        net = _layer_parallel("multigrid", model, dataclasses.replace(options, more=more))
        step = None if monitor_settings is None else MonitoredStep(Monitor(net, **monitor_settings))
        return Built(net=net, step=step)
    if monitor_settings is not None:
        raise DistributedError(
            f"a monitor watches layers of one process, and here are {options.mesh.size()}; start one process, or leave "
            "the monitor out and take more iterations (--iterations 3/2)"
        )
    if options.devices:
        raise DeviceError(
            f"a mesh says where layers run, and devices were named too ({', '.join(map(str, options.devices))})"
        )
    more = {"example_inputs": options.example_inputs, "leaf_modules": options.leaf_modules, **more}
    stage = layer_parallel(model, **more).distribute(options.mesh, timeout=options.timeout)
    _evaluate_exactly(stage)  # stage.step() is no call of the module, and runs none of its hooks
    return Built(net=stage)


def oneshot(model: nn.Module, options: Options) -> Built:
    """One-shot training: one forward and one adjoint iteration a step unless ``more`` says otherwise.

    Samples are recognised by their values: with random augmentation none comes twice, and each solve starts anew. A run
    that is resumed starts from coarse guesses once.
    """
    if options.more.get("monitor"):
        raise MultigridError(
            "the method 'oneshot' keeps its few iterations and has no monitor; take 'multigrid', or leave monitor out"
        )
    given = {name: value for name, value in options.more.items() if name != "monitor"}
    _check_more("oneshot", given)
    more = {"forward_iterations": 1, "backward_iterations": 1, **given, "warm_start": True}
    net = _layer_parallel("oneshot", model, dataclasses.replace(options, more=more))
    return Built(net=net, step=one_shot_step(net))


def _layer_parallel(method: str, model: nn.Module, options: Options) -> LayerParallel:
    if options.mesh is not None and options.mesh.size() > 1:
        raise DistributedError(
            f"the method {method!r} trains in one process, and here are {options.mesh.size()}; start one process, or "
            "take 'parareal'"
        )
    more = {"example_inputs": options.example_inputs, "leaf_modules": options.leaf_modules, **options.more}
    net: LayerParallel = layer_parallel(serial(model, options).net, **more)
    _evaluate_exactly(net)
    return net


def _check_more(method: str, more: Mapping[str, Any]) -> None:
    """Refuse options that :func:`~pararealize.layer_parallel` does not take."""
    names = [name for name in inspect.signature(layer_parallel).parameters if name not in ("model", "mesh")]
    if unknown := sorted(set(more) - set(names), key=str):
        raise MultigridError(
            f"the method {method!r} has no option {', '.join(map(repr, unknown))} in more; there are {', '.join(names)}"
            + (", monitor" if method == "multigrid" else "")
        )


def _evaluate_exactly(net: LayerParallel | LayerStage) -> None:
    """Have the network run layer after layer in eval mode; after every call ``net.exact`` is what it was before it.

    A monitor sets ``net.exact`` too, and for good. The hook after a call is called after one that raises as well.
    """
    before: list[bool] = []

    def enter(module: Any, inputs: Any) -> None:  # noqa: ARG001
        before.append(module.exact)
        module.exact = module.exact or not module.training

    def leave(module: Any, inputs: Any, output: Any) -> None:  # noqa: ARG001
        module.exact = before.pop()  # of the module that was called, which may be a copy of this network

    net.register_forward_pre_hook(enter)
    net.register_forward_hook(leave, always_call=True)


def _monitor_settings(monitor: Any) -> dict[str, Any] | None:
    """Arguments of a monitor; ``None`` for none."""
    if monitor is None or monitor is False:
        return None
    if monitor is not True and not isinstance(monitor, Mapping):
        raise MultigridError(
            f"monitor is {monitor!r}; pass True, or a mapping of some of {', '.join(SETTINGS)}, such as {{'every': 50}}"
        )
    settings = {} if monitor is True else dict(monitor)
    if unknown := sorted(set(settings) - set(SETTINGS), key=str):
        raise MultigridError(
            f"a monitor has no setting {', '.join(map(repr, unknown))}; there are {', '.join(SETTINGS)}"
        )
    return settings


METHODS: dict[str, Callable[[nn.Module, Options], Built]] = {
    method.__name__: method for method in (serial, parareal, multigrid, oneshot)
}
