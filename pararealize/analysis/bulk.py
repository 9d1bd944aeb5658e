"""BlockChain -> a sentence on the part that holds most of the work: which, what keeps it whole, what would help."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import fx, nn

from .blocks import Block, BlockChain
from .flow import Flow, described, living, module_path
from .signature import main_value, weights_of, work

__all__ = ["bulk_of"]

_MOST = 0.5  # of all work, from which on one part is the network's bulk


def bulk_of(chain: BlockChain) -> str:
    """The part with more than half of all work as a sentence; empty where there is none.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pararealize import capture, find_blocks
        >>> from pararealize.models import resnet20
        >>> bulk_of(find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32))))
        ''
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.LSTM(4, 64, batch_first=True))
        >>> print(bulk_of(find_blocks(capture(model, torch.randn(2, 5, 4)))))
        the head holds 100% of the work: 3 (LSTM) is one call of torch.nn's; write its layers out as single modules
    """
    module_of = chain.capture.graph_module.get_submodule
    parts = (chain.stem, *chain.blocks, chain.head)
    amounts = [sum(_work(node, module_of) for node in part.nodes) for part in parts]
    largest = max(amounts)
    if largest <= _MOST * sum(amounts):
        return ""
    part = parts[amounts.index(largest)]
    name = f"the {part.name}" if part in (chain.stem, chain.head) else f"block {part.name} ({_short(part.kind)})"
    return f"{name} holds {largest / sum(amounts):.0%} of the work: {_why_whole(chain, part)}"


def _short(kind: str) -> str:
    """A block's kind; of the kinds of many layers, the first."""
    first, *others = kind.split("-")
    return f"{first}-…" if len(others) > 2 else kind


def _why_whole(chain: BlockChain, part: Block) -> str:
    """What keeps a part from being cut, and what would help."""
    module_of = chain.capture.graph_module.get_submodule
    amounts = {node: _work(node, module_of) for node in part.nodes}
    heaviest = max(amounts, key=amounts.__getitem__)
    if heaviest.op == "call_module" and amounts[heaviest] > _MOST * sum(amounts.values()):
        return _why_one_call(chain, heaviest)
    narrowest = _narrowest(chain.flow, part)
    if narrowest is None and (passed := chain.flow.passed_over(part.nodes)):
        return chain.flow.passed_over() or passed
    if narrowest is None:
        return "nothing within it repeats; write what does as modules of one class, each called once"
    after, alive = narrowest
    return (
        f"where the fewest values are alive in the middle of it, after {after.name} (of "
        f"{module_path(after) or 'the model itself'}), there are {len(alive)}: {', '.join(map(described, alive[:4]))}; "
        "hand on one tensor from module to module, or several whose sizes differ in their channels alone, or make "
        "what all of them read an input of the model"
    )


def _why_one_call(chain: BlockChain, node: fx.Node) -> str:
    path = str(node.target)
    kind = type(chain.capture.graph_module.get_submodule(path)).__name__
    reason = chain.capture.opaque.get(path)
    module = chain.capture.graph_module.get_submodule(path)
    if reason is None and not isinstance(module, nn.RNNBase) and next(module.children(), None) is None:
        return f"{path} ({kind}) is one layer; a narrower one would leave more for the other segments"
    if reason is None:
        return f"{path} ({kind}) is one call of torch.nn's; write its layers out as single modules"
    if reason == "asked for":
        return f"{path} ({kind}) is one call, as leaf_modules says; leave it out there, or name smaller modules"
    return (
        f"{path} ({kind}) is one call: {reason}; move what cannot be read into a smaller module, so that the rest of "
        f"{kind} can be cut"
    )


def _work(node: fx.Node, module_of: Callable[[str], nn.Module]) -> float:
    """As :func:`work`, also of calls that give several values."""
    value = main_value(node)
    if value is None or value is node.meta["val"]:
        return work(node, module_of)
    positions = math.prod(value.shape[1:-1])
    return positions * sum(weight.numel() for weight in weights_of(node, module_of))


def _narrowest(flow: Flow, part: Block) -> tuple[fx.Node, list[fx.Node]] | None:
    """Where, in the middle half of a part, the fewest values are alive, and which; ``None`` where it could be cut."""
    quarter = len(part.nodes) // 4
    middle = set(part.nodes[quarter : len(part.nodes) - quarter])
    points = []
    for i, alive in living(flow.last_read):
        nodes = [flow.order[t] for t in alive if flow.order[t] not in flow.broadcast]
        if flow.order[i] in middle and nodes:
            points.append((flow.order[i], nodes))
    best = min(points, key=lambda point: len(point[1]), default=None)
    return None if best is None or len(best[1]) == 1 else best
