"""A converted network, its original recorded anew -> a Variant: the same weights by the same equation, at other sizes.

A variant has the network's parameters, adapters and coarse blocks, and follows its mode. What it has for itself are the
graphs of stem, context, segments, head and equation; and adapters and coarse blocks whose steps differ, over the
network's weights.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from pararealize.analysis.blocks import find_blocks
from pararealize.coarse.copies import takes_context
from pararealize.errors import GuardError
from pararealize.plan.plan import Plan
from pararealize.tracing.captured import Capture
from pararealize.tracing.conditions import CallConditions
from pararealize.tracing.module_copy import share_contents
from pararealize.tracing.module_view import ModuleView, PlainGraphModule, borrow, mirror
from pararealize.tracing.network_piece import NetworkPiece

from .equation import write_equation
from .interface_sizes import InterfaceSizes
from .parts import read_equation, read_parts
from .pieces import Pieces
from .refitting import refit

__all__ = ["Variant", "give_pieces", "record_variant"]


class Variant(ModuleView, PlainGraphModule):
    """What a network runs for inputs of other sizes than its first recording's; see the file's docstring.

    Attributes:
        plan: the network's.
        part_graphs: the graphs of the original's parts, as the network has them.
        segment_devices: the network's.
    """

    plan: Plan
    part_graphs: dict[str, fx.Graph]
    segment_devices: Sequence[torch.device] | None

    def __init__(
        self,
        net: nn.Module,
        pieces: Mapping[str, fx.Graph],
        graph: fx.Graph,
        plan: Plan,
        devices: Sequence[torch.device] | None,
        others: Mapping[str, nn.Module],
    ) -> None:
        fx.GraphModule.__init__(self, nn.Module(), fx.Graph(), plan.class_name)
        mirror(self, net)
        share_contents(self, net)
        self.__dict__.update(plan=plan, segment_devices=devices, part_graphs=dict(pieces))
        for folder in ("adapters", "coarse"):
            blocks = net.get_submodule(folder)
            mine = nn.ModuleDict({name: others.get(name, block) for name, block in blocks.named_children()})
            self.__dict__[folder] = mine
        self.__dict__["_refitted"] = tuple(others.items())
        self.__dict__["_net"] = net
        give_pieces(self, pieces, graph)

    def recompile(self) -> Any:
        """Write the forward of the graph anew."""
        code = super().recompile()
        type(self).forward = _in_modes(type(self).forward)
        return code

    def follow_modes(self) -> None:
        """Give refitted adapters and coarse blocks the modes of those whose weights they have."""
        net = self.__dict__["_net"]
        for name, module in self.__dict__["_refitted"]:
            theirs = net.get_submodule("adapters" if name.startswith("C") else "coarse").get_submodule(name)
            for mine, other in zip(module.modules(), theirs.modules(), strict=False):
                mine.training = other.training


def _in_modes(graph_forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(graph_forward)
    def forward(self: Variant, *args: Any, **kwargs: Any) -> Any:
        self.follow_modes()
        return graph_forward(self, *args, **kwargs)

    return forward


def give_pieces(net: fx.GraphModule, pieces: Mapping[str, fx.Graph], graph: fx.Graph) -> None:
    """Give a network the modules of its pieces, under the names that its equation calls, and the equation."""
    parts = read_parts(graph)
    runs = {
        name: NetworkPiece(net, copy.deepcopy(piece), name, is_attribute=parts[name].kind != "segment")
        for name, piece in pieces.items()
    }
    segments = nn.ModuleDict({name: piece for name, piece in runs.items() if parts[name].kind == "segment"})
    # Plain attributes, not submodules: the pieces share the network's parameters, which must be listed once.
    net.__dict__.update(stem=runs["stem"], head=runs["head"], segments=segments)
    if "context" in runs or not {*net._modules, *net._parameters, *net._buffers} & {"context"}:
        net.__dict__["context"] = runs.get("context")
    devices = net.__dict__["segment_devices"]
    if devices is not None:  # pieces that share parameters with one elsewhere take copies of them on the way
        for name, piece in runs.items():
            borrow(piece, devices[parts[name].home - 1])
    net.graph = graph


def record_variant(net: nn.Module, captured: Capture) -> tuple[CallConditions, Variant]:
    """Cut a new recording as the network's plan says.

    Args:
        net: the network, a PararealModule.
        captured: its original, recorded at other sizes.

    Raises:
        GuardError: the recording has other blocks, or adapters or coarse blocks cannot follow its sizes.
        CutError: there is no chain of blocks in it.
    """
    plan, devices = net.__dict__["plan"], net.__dict__["segment_devices"]
    chain = find_blocks(captured, granularity=plan.granularity)
    if misfits := plan.misfits(chain):
        raise GuardError(f"the blocks are not those of the plan: {'; '.join(misfits[:3])}")
    adapters = {row.name: net.get_submodule(f"adapters.{row.name}") for row in plan.adapters}
    blocks = net.get_submodule("coarse")._modules
    coarse = {row.name: blocks.get(row.name) for row in (*plan.coarse_blocks, *plan.corrections)}
    pieces = Pieces(chain, plan)
    _check_context(net, pieces, coarse)
    fitted, fitted_coarse = refit(chain, plan, adapters, coarse)
    others = {name: C for name, C in fitted.items() if C is not adapters[name]}
    others |= {name: F for name, F in fitted_coarse.items() if F is not None and F is not coarse[name]}
    graph = write_equation(pieces, coarse, devices)
    net.__dict__["_recordings"].watch.add(pieces.graphs.values())
    variant = Variant(net, pieces.graphs, graph, plan, devices, others)
    fault = InterfaceSizes(chain, plan, fitted, fitted_coarse).fault
    return CallConditions.of(captured.example.call, captured.guards, fault), variant


def _check_context(net: nn.Module, pieces: Pieces, coarse: Mapping[str, nn.Module | None]) -> None:
    """Refuse other context than before where a coarse block reads it by position."""
    nodes = read_equation(net.graph)  # type: ignore[arg-type]
    followers = [segment for segment in pieces.plan.segments if segment.j > 1]
    for segment, row in zip(followers, pieces.plan.coarse_blocks, strict=True):
        name, block = row.name, coarse[row.name]
        if block is not None and takes_context(block):
            before, now = len(nodes.context_of(name)), len(pieces.reads[segment.name])
            if before != now:
                raise GuardError(f"{segment.label} reads {now} values beside its activation, and {name} reads {before}")
