r"""nn.Module, Tableau -> RestackedModule: s residual blocks in a row become one step of a Runge-Kutta method.

    x + f_1(x), x + f_2(x), ..., x + f_s(x)   in a row, each reading what the one before gives, become

    z_i = x + h · Σ_{j<i} a_ij k_j        k_i = f_i(z_i)        y = post(x + h · Σ_i b_i k_i)

with the same f's and no new parameters. ``post`` is the ReLU behind the last addition of post-activation blocks. The
result's graph prints as these lines; a value is let go after its last use, and the sum over b is added to as soon as a
k is there, so that RK4 holds three maps while an f runs, and Verner's formula of order 8 eleven.

Source: "Rethinking ResNets: improved stacking strategies with high order schemes".
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from pararealize.analysis.residual import NotResidual, Residual
from pararealize.argument_types import typed_arguments
from pararealize.errors import ModelError, RestackError, RestackWarning, TableauError
from pararealize.restore import ordinary_mode
from pararealize.table import quantity
from pararealize.tracing.call_signature import CallSignature
from pararealize.tracing.captured import Capture
from pararealize.tracing.conditions import CallConditions
from pararealize.tracing.front_end import capture
from pararealize.tracing.guards import Guards
from pararealize.tracing.module_copy import bare_tree, copy_contents, copy_hooks, copy_model, share_contents
from pararealize.tracing.module_view import Piece
from pararealize.tracing.original import Original
from pararealize.tracing.recorded_module import RecordedModule
from pararealize.tracing.recordings import LIMIT, Recordings
from pararealize.tracing.tree_watch import TreeWatch, omitted_calls

from .grouping import Unit, find_groups
from .growth import dangers
from .rewiring import STEP_SIZES, Adaptive, RestackedGraph
from .tableaux import Tableau, tableau

__all__ = ["BlockGroup", "RestackedModule", "Restacking", "restack"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockGroup:
    """The names of the blocks of one step, and whether a ReLU follows it."""

    blocks: tuple[str, ...]
    post: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Restacking:
    """What was rewired and what was not.

    Attributes:
        model: the model's class.
        scheme: the tableau's name.
        stages: number of f's in a step.
        order: the tableau's order.
        h: the size of a step, or where learnable sizes start.
        adaptive: what learnable steps scale: ``"all"``, ``"output"``, or ``None`` where h is fixed.
        per: whether each residual or each block is an f.
        groups: the steps, in order.
        left: every other residual block or sum of activations, and why it is left as it was.
    """

    model: str
    scheme: str
    stages: int
    order: int
    h: float
    adaptive: str | None
    per: str
    groups: tuple[BlockGroup, ...]
    left: tuple[NotResidual, ...]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        step = f"h = {self.h:g}" + ("" if self.adaptive is None else f", learnable ({self.adaptive})")
        steps = quantity(len(self.groups), "step")
        blocks = self.stages * len(self.groups)
        scheme = f"{self.scheme} ({quantity(self.stages, 'stage')}, order {self.order})"
        lines = [f"{self.model} as {scheme}, {step}: {steps} of {blocks} residual blocks"]
        for g, group in enumerate(self.groups, start=1):
            ends = group.blocks[0] if len(group.blocks) == 1 else f"{group.blocks[0]} – {group.blocks[-1]}"
            lines.append(f"  step {g}: {ends}{', then ReLU' if group.post else ''}")
        reasons: dict[str, list[str]] = {}
        for other in self.left:
            reasons.setdefault(other.reason, []).append(other.name)
        for reason, names in reasons.items():
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            lines.append(f"  left {', '.join(names[:4])}{more}: {reason}")
        return "\n".join(lines)


class RestackedModule(RecordedModule):
    """A network whose residual blocks are wired as Runge-Kutta steps; ``print(net.code)`` shows them.

    It is an ordinary module with the original's parameter names. With ``adaptive`` it has one scalar a step besides:
    ``steps.h1``, ``steps.h2``, ….

    Attributes:
        restacking: which blocks make a step, and which were left and why, as plain data.
        guards: conditions on the inputs under which the graph is right; the original is recorded anew for others.

    Example:
        >>> from pararealize import restack
        >>> from pararealize.models import resnet20
        >>> net = restack(resnet20(), "midpoint")
        >>> print(net.restacking)  # doctest: +ELLIPSIS
        PreActResNet as midpoint (2 stages, order 2), h = 1: 3 steps of 6 residual blocks
        ...
    """

    restacking: Restacking

    def __init__(
        self,
        tree: nn.Module,
        graph: fx.Graph,
        restacking: Restacking,
        table: Tableau,
        *,
        guards: Guards,
        original: Original,
        recording_limit: int = LIMIT,
        omitted: Iterable[str] = (),
    ) -> None:
        fx.GraphModule.__init__(self, nn.Module(), fx.Graph(), f"Restacked{restacking.model}")
        share_contents(self, tree)
        conditions, build = CallConditions.of(CallSignature.of_graph(graph), guards), partial(_restack_anew, self)
        watch = TreeWatch(tree, [graph], follows=True, omitted=omitted)
        recordings = Recordings(conditions, original, build, watch=watch, limit=recording_limit)
        self.__dict__.update(restacking=restacking, guards=guards, _table=table, _recordings=recordings)
        original.give_mode(self)
        self.graph = graph

    def parameter_groups(self, **settings: Any) -> list[dict[str, Any]]:
        """The parameters for an optimiser: adaptive steps, where there are any, in a group without weight decay.

        Args:
            settings: settings of the first group, such as ``weight_decay=1e-4``; the second gets the same but for that.

        Example:
            >>> import torch
            >>> from pararealize import restack
            >>> from pararealize.models import resnet20
            >>> net = restack(resnet20(), "midpoint", adaptive=True)
            >>> optimizer = torch.optim.SGD(net.parameter_groups(weight_decay=1e-4), lr=0.1)
            >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
            [(61, 0.0001), (3, 0.0)]
        """
        if not self.restacking.adaptive:
            return [{"params": list(self.parameters()), **settings}]
        sizes = list(self.get_submodule(STEP_SIZES).parameters())
        weights = [value for value in self.parameters() if all(value is not size for size in sizes)]
        return [{"params": weights, **settings}, {"params": sizes, **settings, "weight_decay": 0.0}]

    def __deepcopy__(self, memo: dict[int, Any]) -> RestackedModule:
        recordings = self.__dict__["_recordings"]
        recordings.watch.check()
        tree = copy_contents(self, memo)
        copied = RestackedModule(
            tree,
            copy.deepcopy(self.graph),
            self.restacking,
            self.__dict__["_table"],
            guards=self.__dict__["guards"],
            original=copy.deepcopy(recordings.original, memo),
            recording_limit=recordings.limit,
            omitted=recordings.watch.omitted,
        )
        memo[id(self)] = copied
        copy_hooks(self, copied, memo)
        return copied

    def __reduce__(self) -> Any:
        raise ModelError(
            "a restacked module is saved by its parameters, not pickled: net.state_dict() (safetensors), then "
            "restack(model, ...) with the same arguments and load_state_dict"
        )


@typed_arguments(RestackError, "model", "h", "adaptive", "per", "leaf_modules", scheme=TableauError)
def restack(
    model: nn.Module,
    scheme: str | Tableau = "rk4",
    h: float = 1.0,
    adaptive: bool | Adaptive = False,
    example_inputs: Any = None,
    *,
    per: Unit = "residual",
    strict: bool = True,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
) -> RestackedModule:
    r"""Rewire residual blocks, s at a time, as steps of a Runge-Kutta method of s stages, with no new parameters.

    .. math::

        z_i = x + h \sum_{j<i} a_{ij} k_j, \quad k_i = f_i(z_i), \quad y = \text{post}\Big(x + h \sum_i b_i k_i\Big)

    Blocks :math:`x + f_i(x)` of one shape, each of which alone reads what the one before gives, are taken in groups of
    s from the front of their chain; what remains of a chain, projection blocks, and all else stay as they are.
    ``euler`` with h = 1 is the network itself, bit for bit. Every other scheme is another function, also of a trained
    network: train it, or :func:`recalibrate_batchnorm` and fine-tune. ``h=s`` keeps the total step and starts closer.

    Args:
        model: any network with chains of residual blocks; it is left as found, and the result holds copies.
        scheme: ``"euler"``, ``"midpoint"``, ``"rk4"``, ``"rk4-last"``, ``"rk8"``, or a :class:`Tableau`.
        h: the size of a step.
        adaptive: one learnable h a step, from ``h`` on: ``True`` or ``"all"`` scales stages and result by it,
            ``"output"`` the result alone. Fragile at high learning rates; see
            :meth:`RestackedModule.parameter_groups`.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; inferred where it can be.
        per: what an f is: each ``"residual"`` (attention and MLP of a transformer in turn), or each ``"block"``, with
            f(x) = attn(x) + mlp(x + attn(x)).
        strict: refuse tables with large coefficients (``rk8``) where an f has no normalisation at its head, or has
            dropout; ``False`` warns instead.
        leaf_modules: classes or qualified names to keep as single nodes.

    Returns:
        A module in the model's mode; ``net.restacking`` says what was rewired and what was not, and why.

    Raises:
        TableauError: an unknown scheme, or a table that is none.
        RestackError: h is no positive number, no chain is as long as the scheme has stages, or ``strict`` forbids it.
        PararealizeError: as :func:`pararealize.capture` does.

    Example:
        >>> import torch
        >>> from pararealize.models import resnet20
        >>> net = restack(resnet20(), "midpoint")
        >>> net(torch.randn(5, 3, 32, 32)).shape
        torch.Size([5, 10])
    """
    table = _check_arguments(scheme, h, adaptive, per)
    kind: Adaptive | None = ("all" if adaptive is True else adaptive) or None
    with ordinary_mode():
        captured = capture(model, example_inputs, leaf_modules=leaf_modules)
        grouping = find_groups(captured, table, per)
        groups = grouping.groups
        _check_coefficients(table, groups, captured, strict=strict)
        _warn_if_trained(captured, table, h, groups)
        restacking = Restacking(
            model=type(model).__name__,
            scheme=table.name,
            stages=table.stages,
            order=table.order,
            h=float(h),
            adaptive=kind,
            per=per,
            groups=_names(groups),
            left=grouping.refusals,
        )
        tree, _ = copy_model(model, captured.constants, [STEP_SIZES] if kind else [])
        root, tree = tree, bare_tree(tree)  # which has the root's hooks
        original = Original(root, tuple(captured.opaque))
        if kind:
            tree._modules[STEP_SIZES] = _step_sizes(groups, float(h)).train(model.training)
        graph = RestackedGraph(captured, groups, table, float(h), kind).graph
        left, guards = omitted_calls(captured.graph, [graph]), captured.guards
        return RestackedModule(tree, graph, restacking, table, guards=guards, original=original, omitted=left)


def _restack_anew(net: RestackedModule, captured: Capture) -> tuple[CallConditions, Piece]:
    """The same steps in a new recording of the original.

    Raises:
        RestackError: they are not there.
    """
    restacking, table = net.restacking, net.__dict__["_table"]
    groups = find_groups(captured, table, restacking.per).groups  # type: ignore[arg-type]
    if (names := _names(groups)) != restacking.groups:
        other = next((a for a in names if a not in restacking.groups), None)
        raise RestackError(f"the blocks are not those of the {len(restacking.groups)} steps that it has: {other}")
    graph = RestackedGraph(captured, groups, table, restacking.h, restacking.adaptive).graph  # type: ignore[arg-type]
    net.__dict__["_recordings"].watch.add([graph])
    return CallConditions.of(captured.example.call, captured.guards), Piece(net, graph, f"Restacked{restacking.model}")


def _names(groups: Sequence[tuple[Residual, ...]]) -> tuple[BlockGroup, ...]:
    return tuple(BlockGroup(blocks=tuple(b.name for b in group), post=group[-1].post is not None) for group in groups)


def _check_arguments(scheme: str | Tableau, h: float, adaptive: object, per: str) -> Tableau:
    faults = []
    if isinstance(h, bool) or not isinstance(h, int | float) or not math.isfinite(h) or h <= 0:
        faults.append(f"h is {h!r}; it is the step: pass a positive number, such as 1.0 or the number of stages")
    if not isinstance(adaptive, bool | str) or adaptive not in (True, False, "all", "output"):
        faults.append(f"adaptive is {adaptive!r}; pass True, False, 'all' or 'output'")
    if per not in ("residual", "block"):
        faults.append(f"per is {per!r}; pass 'residual' or 'block'")
    if faults:
        raise RestackError("; and ".join(faults))
    return scheme if isinstance(scheme, Tableau) else tableau(scheme)


def _check_coefficients(
    table: Tableau, groups: Sequence[tuple[Residual, ...]], captured: Capture, *, strict: bool
) -> None:
    faults = "; and ".join(dangers(table, groups, captured.graph_module.get_submodule))
    if faults and strict:
        raise RestackError(f"{faults}; take scheme='rk4', or pass strict=False to have it all the same")
    if faults:
        warnings.warn(f"{faults}; training may diverge", RestackWarning, stacklevel=3)


def _warn_if_trained(captured: Capture, table: Tableau, h: float, groups: Sequence[tuple[Residual, ...]]) -> None:
    """Say that the function changes, where batch norms have counted batches."""
    if table.stages == 1 and h == 1 and not any(table.a[0]):
        return
    for node in (node for group in groups for residual in group for node in residual.nodes):
        module = captured.graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        count = getattr(module, "num_batches_tracked", None)
        if isinstance(count, torch.Tensor) and not count.is_meta and count > 0:
            warnings.warn(
                f"{type(captured.model).__name__} has seen batches already ({node.target} counted {int(count)}), and "
                f"{table.name} with h = {h:g} is another function than it was: recalibrate_batchnorm(net, loader) and "
                f"fine-tune, or train from scratch; h={table.stages} keeps the total step and starts closer",
                RestackWarning,
                stacklevel=3,
            )
            return


def _step_sizes(groups: Sequence[tuple[Residual, ...]], h: float) -> nn.ParameterDict:
    """One learnable scalar a step, of the type and on the device of the value that the step begins from."""
    sizes = nn.ParameterDict()
    for g, group in enumerate(groups, start=1):
        value = group[0].x.meta["val"]
        sizes[f"h{g}"] = nn.Parameter(torch.full((), h, dtype=value.dtype, device=value.device))
    return sizes
