"""Two spaces -> one adapter ``C^j : X → X_{j-1}``, the cheap map that gives segment j its own input.

An adapter follows a :func:`~pararealize.coarse.resampling.route`, a short list of steps decided first; it is described,
counted and built from that one list. The recipe is that of Lee, Lee and Park, section 4, for images, and its like for
the rest.
"""

from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor, nn

from pararealize.analysis.causality import Sides
from pararealize.analysis.cost import BlockCost, count_module
from pararealize.analysis.space import Space
from pararealize.argument_types import typed_arguments
from pararealize.errors import CoarseError
from pararealize.random_state import seeded_weights

from .output_correction import InputCorrection, build_input_correction, correction_parameters, correction_text
from .resampling import Move, route
from .spec import AdapterPlan, AdapterReads
from .units import in_type_of_weights

__all__ = [
    "Adapter",
    "adapter_cost",
    "adapter_parameters",
    "build_adapter",
    "build_planned_adapter",
    "corrected_recipe",
    "describe_adapter",
    "planned_parameters",
    "planned_recipe",
]


def describe_adapter(source: Space, target: Space, *, reads: AdapterReads = "input", sides: Sides = ()) -> str:
    """What :func:`build_adapter` would build, in one line: ``"2 × max_pool 3×3/2 → conv 1×1 3→64"``."""
    if _is_identity(source, target, reads, sides):
        return "identity"
    runs = [(text, len(list(run))) for text, run in groupby(step.text for step in route(source, target, sides=sides))]
    recipe = " → ".join(text if times == 1 else f"{times} × {text}" for text, times in runs)
    return f"{recipe}, from the identity" if _starts_as_identity(source, target, reads, sides) else recipe


@typed_arguments(CoarseError)
def build_adapter(
    source: Space, target: Space, *, reads: AdapterReads, seed: int = 0, name: str = "adapter", sides: Sides = ()
) -> "Adapter | nn.Identity":
    """The adapter from one space to another, for any pair of maps, token sequences and vectors.

    Weights are drawn with variance 1 / fan-in, as nothing rectifies their input, and biases start at zero; where the
    source is the stem and the shapes agree, the adapter starts as the exact identity. Where the source is what a window
    before gives, and the space does not change, it is the identity and stays it. The caller's random state stays as
    found. Inside ``with torch.device("meta")`` nothing is allocated; otherwise it is built on the CPU.

    Args:
        source: the space of the raw input or of the stem's output, without the batch dimension.
        target: the space X_{j-1} of the segment's input; its dtype is the adapter's.
        reads: what the source is: the raw ``"input"``, the ``"stem"``'s output, or that of the ``"window"`` before.
        seed: with ``name``, fixes the weights: equal ones give equal bits on the CPU.
        name: the adapter's name, such as ``"C2"``, so that adapters of one seed differ.
        sides: where it may read, by axis; both sides of all where empty.

    Returns:
        A module ``(batch, *source.shape) -> (batch, *target.shape)``. It follows other image sizes as strided layers
        do; the numbers of a token grid, and sizes next to a vector, are those of the spaces.

    Example:
        ``build_adapter(image, interface, reads="input")`` for 3×32×32 and 128×16×16 is one 3×3 max pool of stride 2
        and a 1×1 convolution with 3·128 parameters.
    """
    if _is_identity(source, target, reads, sides):
        return nn.Identity()
    with seeded_weights(seed, name):
        adapter = Adapter(source, target, sides)
        project = adapter.project
        with torch.no_grad():
            if not _starts_as_identity(source, target, reads, sides):
                nn.init.kaiming_normal_(project.weight, nonlinearity="linear")
            elif isinstance(project, nn.Linear):
                nn.init.eye_(project.weight)
            else:
                nn.init.dirac_(project.weight)
            if project.bias is not None:
                nn.init.zeros_(project.bias)
    adapter.recipe = describe_adapter(source, target, reads=reads, sides=sides)
    return adapter


def build_planned_adapter(row: AdapterPlan, *, seed: int) -> "Adapter | nn.Identity | InputCorrection":
    """The adapter of a plan's row; ``seed`` as in :func:`build_adapter`."""
    if row.kind:
        return build_input_correction(row.kind, row.rank, row.y, seed=seed, name=row.name)
    return build_adapter(row.x, row.y, reads=row.source, seed=seed, name=row.name, sides=row.causal)


def planned_recipe(row: AdapterPlan) -> str:
    """What the row's recipe has to be."""
    recipe = describe_adapter(row.x, row.y, reads=row.source, sides=row.causal)
    return corrected_recipe(recipe, row.kind, row.rank) if row.kind else recipe


def corrected_recipe(recipe: str, kind: str, rank: int) -> str:
    """``"identity + low-rank of rank 16"``."""
    return f"{recipe} + {correction_text(kind, rank)}"


def planned_parameters(row: AdapterPlan) -> int:
    """How many parameters the adapter of a row has."""
    if row.kind:
        return correction_parameters(row.kind, row.rank, row.y, differs=False, reads_x=False)
    return adapter_parameters(row.x, row.y, reads=row.source, sides=row.causal)


@lru_cache(maxsize=4096)
def adapter_cost(source: Space, target: Space, *, reads: AdapterReads, sides: Sides = ()) -> tuple[int, BlockCost]:
    """Parameters and cost of an adapter, counted on the meta device; no gradient flows into a raw input."""
    if _is_identity(source, target, reads, sides):
        return 0, BlockCost()
    adapter = _on_meta_device(source, target, sides)
    return _numel(adapter), count_module(adapter, source, first=reads == "input")


@lru_cache(maxsize=4096)
def adapter_parameters(source: Space, target: Space, *, reads: AdapterReads = "input", sides: Sides = ()) -> int:
    """Parameters of an adapter, without its cost: nothing is run."""
    return 0 if _is_identity(source, target, reads, sides) else _numel(_on_meta_device(source, target, sides))


def _on_meta_device(source: Space, target: Space, sides: Sides) -> "Adapter":
    with torch.device("meta"):
        return Adapter(source, target, sides)


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class Adapter(nn.Sequential):
    """``C^j``: steps in order, exactly one of which, ``project``, has parameters."""

    project: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

    def __init__(self, source: Space, target: Space, sides: Sides = ()) -> None:
        super().__init__()
        for step in route(source, target, sides=sides):
            self.add_module(step.name, step.make())
        self.spaces = f"{source} → {target}"
        self.recipe = describe_adapter(source, target, sides=sides)
        self.cast = source.dtype != target.dtype
        self.moves = any(isinstance(step, Move) for step in self)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, *source.shape) -> (batch, *target.shape)``."""
        x = in_type_of_weights(super().forward, x, [self.project.weight], keep=not self.cast)
        # what has moved its channels is a view in another order of memory, which blocks that view their input refuse
        return x.contiguous() if self.moves else x

    def extra_repr(self) -> str:
        """The spaces and the recipe, printed before the steps."""
        return f"{self.spaces}: {self.recipe}"


def _starts_as_identity(source: Space, target: Space, reads: AdapterReads, sides: Sides) -> bool:
    shifted = any(side is not None and side.offset for side in sides)
    return reads != "input" and source.shape == target.shape and source.channel == target.channel and not shifted


def _is_identity(source: Space, target: Space, reads: AdapterReads, sides: Sides) -> bool:
    return reads == "window" and source.dtype == target.dtype and _starts_as_identity(source, target, reads, sides)
