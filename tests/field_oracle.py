"""What a module really reads, by autograd: an oracle for receptive fields that knows no rules."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from pararealize.analysis.fields.field import ReceptiveField, receptive_field


class Values(FakeTensorProp):
    """Notes what every node gives: torch 2.10 notes tensors alone."""

    def run_node(self, n):
        result = super().run_node(n)
        n.meta.setdefault("val", result)
        return result


def field_of(module: nn.Module, x: torch.Tensor, enter_axes=None, leave_axes=None, **options) -> ReceptiveField:
    """The field of a whole module, traced symbolically; axes default to all behind batch and channels."""
    traced = fx.symbolic_trace(module)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        Values(traced, mode).propagate(x)
    nodes = list(traced.graph.nodes)
    output = nodes[-1].args[0]
    axes = enter_axes or tuple(range(2, x.dim()))
    return receptive_field(
        traced, nodes[1:-1], enter=nodes[0], leave=output, enter_axes=axes, leave_axes=leave_axes or axes, **options
    )


def support(
    module: nn.Module, x: torch.Tensor, position: tuple[int, ...], axis: int, axes=None
) -> tuple[int, int] | None:
    """The first and last input position along one axis whose change moves the output at ``position``."""
    axes = axes or tuple(range(2, x.dim()))
    x = x.clone().requires_grad_()
    y = module(x)
    index: list[slice | int] = [slice(None)] * y.dim()
    for dim, place in zip(axes, position, strict=True):
        index[dim] = place
    seen = y[tuple(index)].flatten()
    weights = torch.linspace(1, 2, len(seen), dtype=seen.dtype)  # a plain sum of a norm's output is always zero
    (gradient,) = torch.autograd.grad((seen * weights).sum(), x)
    others = [d for d in range(x.dim()) if d != axes[axis]]
    touched = gradient.abs().sum(others).nonzero().flatten()
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


def interval(field: ReceptiveField, axis: int, position: int, extent: int) -> tuple[int, int]:
    """The first and last position of the map that the field says is read."""
    size = field.size[axis]
    if size is None:
        return 0, extent - 1
    first = Fraction(field.start[axis] + field.stride[axis] * position)
    last = first + size - 1
    return max(0, -((-first.numerator) // first.denominator)), min(extent - 1, last.numerator // last.denominator)


def assert_covers(module: nn.Module, x: torch.Tensor, *, exact: bool = False, axes=None) -> ReceptiveField:
    """Every output position along each axis reads within its field; with ``exact``, up to both ends of it."""
    module = module.double().eval()
    x = x.double()
    axes = axes or tuple(range(2, x.dim()))
    field = field_of(module, x, axes, axes)
    shape = module(x).shape
    for axis, dim in enumerate(axes):
        for place in range(shape[dim]):
            position = tuple(place if d == dim else shape[d] // 2 for d in axes)
            seen, said = support(module, x, position, axis, axes), interval(field, axis, place, x.shape[dim])
            if seen is None:
                continue
            assert said[0] <= seen[0], f"{field}: output {place} of axis {axis} reads {seen}, field says {said}"
            assert seen[1] <= said[1], f"{field}: output {place} of axis {axis} reads {seen}, field says {said}"
            size, first = field.size[axis], field.start[axis] + field.stride[axis] * place
            inside = size is None or (first >= 0 and first + size <= x.shape[dim])
            if exact and inside:
                assert seen == said, f"{field}: output {place} of axis {axis} reads {seen}, field says {said}"
    return field


def positive(module: nn.Module) -> nn.Module:
    """The same module with every weight positive, so that no contribution cancels."""
    for parameter in module.parameters():
        parameter.data = parameter.data.abs() + 0.1
    return module


class Lambda(nn.Module):
    """A function of a module and its input as a module, with layers of 4 channels to use in it."""

    def __init__(self, function, channels: int = 4) -> None:
        super().__init__()
        self.function = function
        self.conv = positive(nn.Conv2d(channels, channels, 3, padding=1))
        self.linear = positive(nn.Linear(channels, channels))

    def forward(self, x):
        return self.function(self, x)
