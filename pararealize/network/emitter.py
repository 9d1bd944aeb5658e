"""BlockChain, Plan, adapters and coarse blocks -> PararealModule: an fx module whose code is equation (3) of the paper.

Pieces            graphs of stem, context, segments, head     pieces.py
copy_model        a copy of the model                         tracing/module_copy.py
write_equation    the network's own graph, equation (3)       equation.py
PararealModule    the three put together                      module.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pararealize.analysis.blocks import BlockChain
from pararealize.argument_types import typed_arguments
from pararealize.errors import DeviceError, PlanError
from pararealize.models import built_as
from pararealize.plan.plan import Plan
from pararealize.saving.network_record import Conversion
from pararealize.tracing.module_copy import bare_tree, copy_model
from pararealize.tracing.network_piece import contents_of
from pararealize.tracing.original import Original

from .equation import write_equation
from .interface_sizes import InterfaceSizes
from .module import PararealModule
from .parts import part_modules
from .pieces import Pieces

__all__ = ["emit"]


@typed_arguments(PlanError)
def emit(
    chain: BlockChain,
    plan: Plan,
    adapters: Mapping[str, nn.Module],
    coarse: Mapping[str, nn.Module | None],
    *,
    devices: Sequence[torch.device] | None = None,
) -> PararealModule:
    """Put the parts of a plan together.

    Args:
        chain: the network's blocks; its model is copied, so that training the result leaves it alone.
        plan: where to cut.
        adapters: C^{m,j} by name.
        coarse: F^{m,j} by name, ``None`` where it is g^{m,j+1} itself; and K^{m,j}, where there are such.
        devices: n of them, or ``None`` to stay where the model is.

    Returns:
        The network, in the model's mode.

    Raises:
        ModelError: the model cannot be copied, or has a top-level name that the result needs for itself.
    """
    wanted = [{row.name for row in rows} for rows in (plan.adapters, (*plan.coarse_blocks, *plan.corrections))]
    if [set(adapters), set(coarse)] != wanted:
        raise PlanError(
            f"the plan has adapters {sorted(wanted[0])} and coarse blocks {sorted(wanted[1])}, and given are "
            f"{sorted(map(str, adapters))} and {sorted(map(str, coarse))}; pass those of the plan, by name"
        )
    if devices is not None and len(devices) != plan.n:
        raise DeviceError(f"{len(devices)} devices for n = {plan.n}; pass n of them")
    pieces = Pieces(chain, plan)
    tree, keys = copy_model(chain.capture.model, chain.capture.constants)
    training = chain.capture.model.training
    blocks = {name: block for name, block in coarse.items() if block is not None}
    root, tree = tree, bare_tree(tree)  # which has the root's hooks
    guards, original = chain.capture.guards, Original(root, tuple(chain.capture.opaque))
    tree._modules["adapters"] = nn.ModuleDict(dict(adapters)).train(training)
    tree._modules["coarse"] = nn.ModuleDict(blocks).train(training)
    graph = write_equation(pieces, coarse, devices)
    if devices is not None:  # a first network places the modules; which of them pieces borrow is then known
        _place(PararealModule(tree, pieces.graphs, graph, plan, keys, guards=guards, original=original), devices)
    fault = InterfaceSizes(chain, plan, adapters, coarse).fault
    return PararealModule(
        tree,
        pieces.graphs,
        graph,
        plan,
        keys,
        devices,
        guards=guards,
        original=original,
        fault=fault,
        conversion=Conversion.of(chain.capture),
        built=built_as(chain.capture.model),
    )


def _place(net: PararealModule, devices: Sequence[torch.device]) -> None:
    """Move every part to its segment's device; what parts share stays with the first of them."""
    placed: set[int] = set()
    for part, root in part_modules(net, sorted(net.network_parts.values(), key=lambda part: part.home)).items():
        device = devices[part.home - 1]
        for module in contents_of(root).modules():
            if id(module._parameters) not in placed:  # views of modules share this dictionary with the modules
                placed.add(id(module._parameters))
                module._apply(lambda tensor, device=device: tensor.to(device), recurse=False)
