"""A selection of windows -> the model, converted with them; and the blocks with layers for folded maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

from torch import nn

from pararealize.analysis.blocks import BlockChain
from pararealize.analysis.last_layer import layers_at_ends
from pararealize.coarse.output_correction import correction_kind
from pararealize.compiler import pararealize
from pararealize.errors import CoarseError
from pararealize.network.module import PararealModule

__all__ = ["Span", "converted_with", "foldable_blocks"]

Span: TypeAlias = tuple[int, int]  # the first block of a window, and the one behind its last


def converted_with(
    model: nn.Module,
    names: Sequence[str],
    n: int,
    windows: Sequence[Span],
    cuts: Sequence[int] | None,
    settings: dict[str, Any],
) -> PararealModule:
    """The network with windows of these blocks, the first and the one behind the last of each; sequential elsewhere.

    ``cuts`` are the blocks at which segments begin; where there are none, the planner chooses.
    Where maps are to be folded into layers, and no segment of these windows ends with one, it has none.
    """
    inside = {block for first, stop in windows for block in range(first, stop)}
    sequential = [name for block, name in enumerate(names) if block not in inside]
    convert = partial(
        pararealize, model, n, windows=[names[first] for first, _ in windows], sequential=sequential,
        cuts="cost" if cuts is None else [names[block] for block in cuts], **settings,
    )  # fmt: skip
    try:
        return convert().eval()
    except CoarseError:
        if not _folds(settings["coarse"]):
            raise
        return convert(coarse="linear").eval()


def _folds(coarse: str) -> bool:
    """Whether a kind has its maps within layers."""
    request = correction_kind(coarse)
    return request is not None and request.kind == "folded"


def foldable_blocks(coarse: str, chain: BlockChain) -> frozenset[int]:
    """The blocks that end with a layer into which maps are to be folded; none of other kinds.

    Raises:
        CoarseError: maps are to be folded, and there is no such block, or all such layers are frozen.
    """
    if not _folds(coarse):
        return frozenset()
    layers = {i: chain.capture.model.get_submodule(name) for i, name in enumerate(layers_at_ends(chain)) if name}
    if not layers:
        raise CoarseError(
            f"coarse = {coarse!r}, and no block ends with a linear layer or convolution whose output only adds to the "
            'stream, in which a map could stand; pass "low-rank", whose maps stand beside the segments'
        )
    trained = {i for i, layer in layers.items() if all(value.requires_grad for value in layer.parameters())}
    if not trained:
        raise CoarseError(
            f"coarse = {coarse!r} writes maps into the last layers of blocks, and all of these are frozen; call "
            'model.requires_grad_(True), or pass "low-rank", whose maps stand beside the segments'
        )
    return frozenset(trained)
