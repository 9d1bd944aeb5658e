"""RankModules of a network on the meta device, seed -> the same with values, and a list of tensors that have none yet.

Values do not depend on the number of ranks: each module draws from a random state that the seed and its name fix.
What no module knows how to draw stays undefined, and is reported at the first step, until a checkpoint is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pararealize.coarse.adapter import build_planned_adapter
from pararealize.coarse.coarse_block import draw_coarse
from pararealize.coarse.output_correction import build_correction
from pararealize.plan.parts import Part
from pararealize.plan.plan import Plan
from pararealize.random_state import seeded_weights

from .partition import SegmentedNetwork, module_at, tensor_at
from .rank_modules import RankModules

__all__ = ["UndefinedTensors", "draw_values"]


@dataclasses.dataclass(frozen=True, slots=True)
class UndefinedTensors:
    """Tensors that had no values.

    Attributes:
        tree: the modules that have them.
        versions: by name each tensor with its version counter at that time.
    """

    tree: nn.Module
    versions: dict[str, tuple[torch.Tensor, int]] = dataclasses.field(default_factory=dict)

    def names(self) -> list[str]:
        """Names of those that still have no values: floats that are NaN, others that were not written since."""
        for name, (tensor, version) in list(self.versions.items()):
            current = tensor_at(self.tree, name)  # another one stands there where the module was moved
            if current is not None and current.is_floating_point():
                written = not current.isnan().any()
            else:
                written = current is not tensor or tensor._version != version
            if written:
                del self.versions[name]
        return list(self.versions)

    def fault(self) -> str:
        """Why no step can be run: some have no values; empty where all have."""
        names = self.names()
        if not names:
            return ""
        return (
            f"{len(names)} tensors have no values ({', '.join(names[:3])}): the network came from the meta device, and "
            "no module draws them; load a checkpoint with stage.load_state_dict(...)"
        )

    def over(self, tree: nn.Module) -> UndefinedTensors:
        """The same of a copy of the modules."""
        copies = {name: tensor_at(tree, name) for name in self.names()}
        return UndefinedTensors(
            tree, {name: (tensor, tensor._version) for name, tensor in copies.items() if tensor is not None}
        )


def draw_values(
    modules: RankModules, net: SegmentedNetwork, parts: Sequence[Part], device: torch.device, seed: int
) -> UndefinedTensors:
    """Give values to modules that were copied from the meta device.

    Adapters and coarse blocks are those of a conversion with this seed. Every other module with
    ``reset_parameters()`` draws by it.

    Args:
        modules: of this rank.
        net: the network on the meta device.
        parts: those that the rank owns.
        device: of the modules.
        seed: the same on all ranks.

    Returns:
        The tensors that no module knows how to draw.
    """
    drawn: set[int] = set()  # ids of tensors
    for part in parts:
        if (built := _built(net.plan, part, seed)) is not None:
            module = module_at(modules.tree, part.target)
            module.load_state_dict(built.state_dict())
            drawn.update(map(id, (*module.parameters(), *module.buffers())))
    names = _first_names(net)
    for path, module in modules.tree.named_modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
        if reset is None or not tensors or all(id(tensor) in drawn for tensor in tensors):
            continue
        with seeded_weights(seed, names[path]), device:
            reset()
        drawn.update(map(id, tensors))
    state = (*modules.tree.named_parameters(), *modules.tree.named_buffers())
    return UndefinedTensors(
        modules.tree, {name: (tensor, tensor._version) for name, tensor in state if _is_empty(tensor, drawn)}
    )


def _built(plan: Plan, part: Part, seed: int) -> nn.Module | None:
    """An adapter, coarse block or correction as a conversion would have built it, where shapes say all of it."""
    if part.kind == "adapter":
        row = next(row for row in plan.adapters if row.index == part.index)
        return build_planned_adapter(row, seed=seed)
    if part.kind == "coarse":
        return draw_coarse(next(row for row in plan.coarse_blocks if row.index == part.index), seed=seed)
    if part.kind == "correction":
        k = next(row for row in plan.corrections if row.index == part.index)
        return build_correction(k.kind, k.rank, k.y, differs=k.differs, reads_x=k.reads_x, seed=seed, name=k.name)
    return None


def _first_names(net: nn.Module) -> Mapping[str, str]:
    """For each name of a module the first one of the same module, which is the same on every rank."""
    names: dict[int, str] = {}
    return {path: names.setdefault(id(module), path) for path, module in net.named_modules(remove_duplicate=False)}


def _is_empty(tensor: torch.Tensor, drawn: set[int]) -> bool:
    return bool(tensor.isnan().any()) if tensor.is_floating_point() else id(tensor) not in drawn
