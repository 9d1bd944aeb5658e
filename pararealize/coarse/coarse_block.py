"""A coarse plan in, one coarse module out: ``F^j : X_j → X_{j+1}``, close to ``g^{j+1}`` and much cheaper.

Kinds, by name: ``"paper"``, the unit of Lee, Lee and Park (section 4); ``"depthwise"``, the same with a large-kernel
depthwise convolution; ``"bottleneck"``, the linear map and a narrow residual unit behind it; ``"linear"``, the identity
or one strided 1×1 convolution; ``"block"``, made of the segment's own blocks; ``"exact"``, ``g^{j+1}`` itself; or a
callable. ``"auto"`` is one of these, chosen in ``evidence.py``. The units themselves stand in ``units.py`` and
``bottleneck.py``.
"""

import copy
import difflib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from pararealize.analysis.cost import BlockCost, count_module
from pararealize.analysis.space import Space
from pararealize.errors import CoarseError
from pararealize.random_state import seeded_weights

from .bottleneck_unit import bottleneck
from .resampling import halvings
from .units import CoarseBlock, Copies, depthwise_units, linear_map, paper_units, redraw

if TYPE_CHECKING:
    from pararealize.analysis.blocks import Block, BlockChain
    from pararealize.analysis.fields.field import Fields, ReceptiveField
    from pararealize.coarse.spec import CoarsePlan

__all__ = [
    "KINDS",
    "UNITS",
    "Coarse",
    "block_choice",
    "build_coarse",
    "coarse_cost",
    "coarse_name",
    "coarse_units",
    "draw_coarse",
    "kernel_for",
    "kind_for",
    "takes_context",
    "units_for",
]

KINDS = ("paper", "depthwise", "bottleneck", "linear", "block", "exact")
UNITS = ("paper", "depthwise", "bottleneck", "linear")  # kinds that follow from the two spaces, whatever the network
LARGEST_KERNEL = 7
SHARE_OF_BLOCKS = 4  # F^j copies at most one in so many of a segment's blocks: it has to be much cheaper

Builder: TypeAlias = Callable[[fx.GraphModule, tuple[int, ...], tuple[int, ...]], nn.Module]
Coarse: TypeAlias = str | Builder


def coarse_name(coarse: Coarse) -> str:
    """The name of a coarse kind as a plan shows it, after checking that there is such a kind.

    Raises:
        CoarseError: neither one of ``KINDS`` nor ``"auto"`` nor callable; says which kinds come close.
    """
    if isinstance(coarse, str) and coarse in (*KINDS, "auto"):
        return coarse
    if not isinstance(coarse, str) and callable(coarse):
        return str(getattr(coarse, "__qualname__", type(coarse).__qualname__))
    close = difflib.get_close_matches(str(coarse), (*KINDS, "auto"), n=2)
    meant = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
    raise CoarseError(
        f"no coarse kind {coarse!r}{meant}; pass one of {', '.join(map(repr, KINDS))}, 'auto', "
        "or a callable (segment, x_shape, y_shape) -> nn.Module"
    )


def kind_for(coarse: Coarse, x: Space, y: Space) -> tuple[str, str]:
    """The kind of one ``F^j`` and a note: convolutional kinds need maps and give way to ``"block"`` elsewhere.

    Returns ``(kind, note)``, ``note`` empty where the kind is the one asked for; a callable's kind is ``"custom"``.
    """
    name = coarse_name(coarse)
    if not isinstance(coarse, str):
        return "custom", ""
    if name in ("paper", "depthwise") and not (_is_map(x) and _is_map(y) and len(x.extent) == len(y.extent)):
        return "block", f'"{name}" needs maps on both sides, {x} → {y} is not: "block" instead'
    if name == "bottleneck" and not _has_narrow_unit(y):
        return "linear", f'"bottleneck" needs channels at an end and at most three axes, {y} is not: "linear" instead'
    return name, ""


def units_for(kind: str, chain: "BlockChain", fields: "Fields", n: int) -> int:
    """Units in every ``F^j`` of a network cut into n segments, from the coverage of receptive fields.

    With K stages (runs of maps of one extent), u is the fewest units that see as much of a stage's input map as the
    stage itself does, to within one pixel, in the stage of ``F^1 … F^{K-1}`` that needs most; then
    ``N_c = ⌈K·u / n⌉``, so that the whole coarse network sees the same at every n. For ResNet-1001, K = 3 and four
    units see 31 of 32 pixels: ``N_c = ⌈12/n⌉``, as in the paper.

    Only ``"paper"`` and ``"block"`` look at fields, and only at those of maps; other kinds have one unit. Units of
    ``"block"`` are the segment's own blocks, of which a shallow stage needs nearly all to see as much, so that there
    are at most a quarter as many as a segment has, and at least one.

    Raises:
        FieldError: a stage holds an operation without a receptive-field rule.
    """
    stages = _map_stages(chain) if kind in ("paper", "block") else ()
    if not stages:
        return 1
    needed = _paper_units_needed if kind == "paper" else _blocks_needed
    u = max(needed(chain, fields, first, last) for first, last in stages[1:] or stages)
    units = math.ceil(len(stages) * u / n)
    return units if kind == "paper" else max(1, min(units, len(chain.blocks) // (SHARE_OF_BLOCKS * n)))


def kernel_for(x: Space, field: "ReceptiveField") -> int:
    """The smallest odd kernel, 3 to 7, that sees as much of X_j as ``g^{j+1}`` does, to within one pixel; else 7."""
    if len(field.size) != len(x.extent):
        return LARGEST_KERNEL
    wanted = max(field.within(x.extent), default=1) - 1
    return next((k for k in range(3, LARGEST_KERNEL, 2) if k >= wanted), LARGEST_KERNEL)


@lru_cache(maxsize=4096)
def coarse_cost(kind: str, x: Space, y: Space, units: int, kernel: int = LARGEST_KERNEL) -> tuple[int, BlockCost]:
    """Parameters and cost of a block of one of ``UNITS``, counted on the meta device.

    What ``"block"`` costs are the blocks of :func:`block_choice`; ``"exact"`` costs what the segment does and has no
    parameters of its own. Units behind those that change the space are all alike, so that only the first are counted.
    """
    few = _units_that_change(x, y) + 1
    if units > few + 1:
        (p, cost), (q, more) = (coarse_cost(kind, x, y, count, kernel) for count in (few, few + 1))
        return p + (units - few) * (q - p), cost.plus(more, times=units - few)
    with torch.device("meta"):
        module = coarse_units(kind, x, y, units, kernel)
    return sum(parameter.numel() for parameter in module.parameters()), count_module(module, x)


def _units_that_change(x: Space, y: Space) -> int:
    """At most as many units halve the map, and one changes the channels."""
    ratios = [a / b for a, b in zip(x.extent, y.extent, strict=False) if a > b > 0]
    return max(1, *(math.ceil(math.log2(ratio)) for ratio in ratios), 1)


def block_choice(blocks: Sequence["Block"], units: int) -> tuple[int, ...]:
    """Which blocks of a segment ``"block"`` copies, as offsets in order: a chain from its input to its output.

    Every block that changes the space, since nothing else can, and of the commonest of the others (interchangeable
    ones counted together) as many as make up ``units``. Where a segment consists of changes only, as within a dense
    block, this is all of it.
    """
    changes = [i for i, block in enumerate(blocks) if block.x != block.y]
    signatures = Counter(block.exact_signature for block in blocks if block.x == block.y)
    if not signatures:
        return tuple(changes)
    commonest = signatures.most_common(1)[0][0]
    copies = [i for i, block in enumerate(blocks) if block.x == block.y and block.exact_signature == commonest]
    wanted = max(units - len(changes), 0 if changes else 1)
    return tuple(sorted(changes + copies[:wanted]))


def build_coarse(
    plan: "CoarsePlan", chain: "BlockChain", *, first: int, last: int, seed: int, coarse: Coarse | None = None
) -> nn.Module | None:
    """The module of one coarse plan, or None for ``"exact"``, where segment j+1 itself is to be called.

    Convolutions are drawn with He's variance where a ReLU stands before them and 1 / fan-in where none does. The
    caller's random state stays as found, and one seed gives equal bits on the CPU. Inside ``with
    torch.device("meta")`` nothing is allocated.

    Args:
        plan: which kind, how many units, from which space to which.
        chain: the network's blocks; ``first`` to ``last`` (0-based, inclusive) are those of segment j+1.
        first: first block of segment j+1.
        last: last block of segment j+1.
        seed: of the weights; each j draws its own.
        coarse: the callable where the plan's kind is ``"custom"``.

    Returns:
        A module ``(batch, *x.shape) -> (batch, *y.shape)``, in training mode; it is called ``F(r, *context)`` with
        the segment's context where :func:`takes_context` says so, and ``F(r)`` otherwise.

    Raises:
        CoarseError: a custom builder's module maps to another shape; a block cannot be copied.
    """
    with seeded_weights(seed, f"F{plan.j}"):
        if plan.kind == "exact":
            return None
        if plan.kind == "block":
            return _copy_blocks(chain, first, last, plan.units)
        if plan.kind == "custom":
            assert callable(coarse)
            return _custom(coarse, plan, chain, first, last)
        return coarse_units(plan.kind, plan.x, plan.y, plan.units, plan.kernel)


def draw_coarse(plan: "CoarsePlan", *, seed: int) -> nn.Module | None:
    """What :func:`build_coarse` makes, for the kinds that need no network to look at; ``None`` for the others."""
    if plan.kind not in UNITS:
        return None
    with seeded_weights(seed, f"F{plan.j}"):
        return coarse_units(plan.kind, plan.x, plan.y, plan.units, plan.kernel)


def takes_context(module: nn.Module) -> bool:
    """Whether a coarse module is called ``F(r, *context)``: copied blocks, or a graph of several inputs."""
    if isinstance(module, fx.GraphModule):
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        return len(inputs) > 1
    return bool(getattr(module, "needs_context", False))


# ------------------------------------------------------------------------------------------------ making and counting


def coarse_units(kind: str, x: Space, y: Space, units: int, kernel: int) -> nn.Module:
    """A block of one of ``UNITS``, of so many units where it has any, its weights drawn as they come."""
    if kind == "linear":
        return linear_map(x, y)
    if kind == "paper":
        return CoarseBlock(x, y, paper_units(x, y, units))
    if kind == "depthwise":
        return CoarseBlock(x, y, depthwise_units(x, y, units, kernel))
    if kind == "bottleneck":
        return bottleneck(x, y, kernel)
    raise CoarseError(f"a {kind!r} block has no cost of its own; there are costs of {', '.join(map(repr, UNITS))}")


def _copy_blocks(chain: "BlockChain", first: int, last: int, units: int) -> "Copies":
    """Fresh copies of the chosen blocks, each reading its own part of the segment's context."""
    segment = chain.blocks[first : last + 1]
    context = chain.context(first, last)
    chosen = [segment[i] for i in block_choice(segment, units)]
    pieces = []
    for block in chosen:
        try:
            piece = copy.deepcopy(chain.piece(block))
        except (RuntimeError, TypeError) as error:
            raise CoarseError(
                f"block {block.name} ({block.kind}) cannot be copied: {error}; "
                'pass coarse="linear", or a callable that builds the coarse block'
            ) from error
        pieces.append(redraw(piece))
    reads = [tuple(context.index(node) for node in block.context) for block in chosen]
    return Copies(pieces, reads, names=[block.name for block in chosen], needs_context=bool(context))


def _custom(build: Builder, plan: "CoarsePlan", chain: "BlockChain", first: int, last: int) -> nn.Module:
    """What the user's callable builds, checked on fake tensors."""
    name = coarse_name(build)
    module = build(chain.module(first, last), plan.x.shape, plan.y.shape)
    if not isinstance(module, nn.Module):
        raise CoarseError(f"{name} gave {type(module).__name__} for F^{plan.j}; it has to return an nn.Module")
    wanted = f"a module (batch, {_commas(plan.x)}) -> (batch, {_commas(plan.y)})"
    context = [node.meta["val"] for node in chain.context(first, last)] if takes_context(module) else []
    batch = chain.capture.batch if context else 2
    try:
        output = _try_out(module, plan.x, batch, context)
    except Exception as error:
        raise CoarseError(f"F^{plan.j} of {name} does not run: {error}; it has to return {wanted}") from error
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != (batch, *plan.y.shape):
        raise CoarseError(
            f"F^{plan.j} of {name} maps (batch, {_commas(plan.x)}) to {_batch(shape)}, but X_{plan.j + 1} is {plan.y}; "
            f"it has to return {wanted}"
        )
    return module


def _try_out(module: nn.Module, x: Space, batch: int, context: list[Any]) -> Any:
    """Run a copy of the module on fake tensors: no arithmetic, no memory, and the module stays as it is."""
    with FakeTensorMode() as fakes:

        def fake(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return torch.empty(value.shape, dtype=value.dtype, device=value.device)

        tensors = [*module.parameters(), *module.buffers()]
        stand_in = copy.deepcopy(module, {id(tensor): fakes.from_tensor(tensor) for tensor in tensors})
        home = tensors[0].device if tensors else torch.get_default_device()
        value = torch.empty(batch, *x.shape, dtype=x.torch_dtype, device=home)
        return stand_in(value, *(pytree.tree_map(fake, node) for node in context))


# ------------------------------------------------------------------------------------------------------ how many units


def _is_map(space: Space) -> bool:
    """A map of one to three axes; (tokens, channels) is not one."""
    axes = len(space.extent)
    return 1 <= axes <= 3 and not (axes == 1 and space.channel == 1)


def _has_narrow_unit(space: Space) -> bool:
    """What :class:`~pararealize.coarse.bottleneck_unit.Bottleneck` works on: a vector, or one to three axes and channels."""
    return bool(space.shape) and len(space.extent) <= 3 and (space.channel == 0 or space.channels_last)


def _map_stages(chain: "BlockChain") -> tuple[tuple[int, int], ...]:
    """(first, last) of each run of blocks whose outputs are maps of one extent."""
    stages = []
    for (extent, is_map), run in groupby(enumerate(chain.blocks), key=lambda item: _stage_key(item[1].y)):
        indices = [i for i, _ in run]
        if is_map and extent:
            stages.append((indices[0], indices[-1]))
    return tuple(stages)


def _stage_key(space: Space) -> tuple[tuple[int, ...], bool]:
    return space.extent, _is_map(space)


def _paper_units_needed(chain: "BlockChain", fields: "Fields", first: int, last: int) -> int:
    """The fewest paper units that see as much of the stage's input as the stage, to within one pixel."""
    x, y = chain.blocks[first].x, chain.blocks[last].y
    if len(x.extent) != len(y.extent):
        return 1
    field = fields.of(first, last)
    wanted = field.within(x.extent) if len(field.size) == len(x.extent) else x.extent
    paths = [halvings(a, b) for a, b in zip(x.extent, y.extent, strict=True)]
    return max(_units_to_see(size - 1, len(path)) for size, path in zip(wanted, paths, strict=True))


def _units_to_see(size: Any, steps: int) -> int:
    """Units of two 3-wide convolutions until their field is ``size``, the first ``steps`` units at stride 2."""
    field, jump, units = 1, 1, 0
    while field < size:
        field += 2 * jump
        jump *= 2 if units < steps else 1
        field += 2 * jump
        units += 1
    return max(units, 1)


def _blocks_needed(chain: "BlockChain", fields: "Fields", first: int, last: int) -> int:
    """The fewest blocks of the stage, from its first one on, that see as much as the whole, to within one pixel."""
    extent = chain.blocks[first].x.extent
    whole = fields.of(first, last)
    if len(whole.size) != len(extent):
        return 1
    wanted = [size - 1 for size in whole.within(extent)]
    low, high = first, last
    while low < high:  # fields only grow, so bisect
        middle = (low + high) // 2
        seen = fields.of(first, middle)
        enough = len(seen.size) == len(extent) and all(a >= b for a, b in zip(seen.within(extent), wanted, strict=True))
        low, high = (low, middle) if enough else (middle + 1, high)
    return low - first + 1


def _commas(space: Space) -> str:
    return ", ".join(map(str, space.shape))


def _batch(shape: Any) -> str:
    return f"({', '.join(['batch', *map(str, shape[1:])])})" if isinstance(shape, tuple) else str(shape)
