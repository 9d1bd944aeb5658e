"""A network, a setting -> what the network does in it: outputs and gradients; and where two networks differ."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from .example import Example
from .operations import fields_of

__all__ = ["Behaviour", "Difference", "Setting", "first_difference", "observe"]

Shape = tuple[int, ...]
Pair = tuple[str, Any, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a network is run; it prints as the end of a sentence.

    Attributes:
        training: the training flag of every module; or flags that differ from module to module: those of each second
            "level" of submodules, the network itself included, or those that a digest of the module's "name" picks.
        shapes: of the inputs that have another shape than in the example, by name.
        dtype: the element type that the network and its floating inputs are cast to, or ``None`` for their own.
        autocast: whether it runs within ``torch.autocast``.
        gradients: whether gradients are computed, of parameters and of floating inputs.
    """

    training: bool | Literal["level", "name"]
    shapes: Mapping[str, Shape] = dataclasses.field(default_factory=dict)
    dtype: torch.dtype | None = None
    autocast: bool = False
    gradients: bool = False

    def __str__(self) -> str:
        mixed = {"level": "with each second level of modules in train mode", "name": "with some modules in train mode"}
        words = [mixed.get(str(self.training), "in train mode" if self.training else "in eval mode")]
        words += ["under torch.autocast"] if self.autocast else []
        words += [] if self.gradients else ["under torch.no_grad"]
        words += [f"cast to {str(self.dtype).removeprefix('torch.')}"] if self.dtype else []
        words += [f"with {name} of shape {shape}" for name, shape in self.shapes.items()]
        return ", ".join(words)

    def flags(self, paths: Iterable[str]) -> dict[str, bool]:
        """The training flag of each module by its qualified name."""
        if self.training == "level":  # so that no module has the flag of its parent
            return {path: bool(path and path.count(".") % 2) or not path for path in paths}
        if self.training == "name":
            return {path: bool(zlib.crc32(path.encode()) & 8) for path in paths}
        return dict.fromkeys(paths, self.training)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What a network did.

    Attributes:
        outputs: its tensors and numbers, by a name for each.
        gradients: of parameters and inputs, by name; ``None`` where there is none. Empty where none were asked for, or
            where no output has any.
        draws: how many calls drew random numbers, where these are counted.
        error: what it raised, if it did.
    """

    outputs: dict[str, Any] = dataclasses.field(default_factory=dict)
    gradients: dict[str, torch.Tensor | None] = dataclasses.field(default_factory=dict)
    draws: int = 0
    error: Exception | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where two networks differ.

    Attributes:
        name: of the value that differs, such as ``output`` or ``the gradient of layers.0.weight``.
        fault: how much.
    """

    name: str
    fault: str

    def __str__(self) -> str:
        return f"{self.name} {self.fault}"


def observe(
    run: Callable[..., Any], model: nn.Module, example: Example, setting: Setting, *, by_name: bool
) -> Behaviour:
    """Run a network and look at what comes out.

    Args:
        run: the network.
        model: what holds its parameters and training flags; both are changed.
        example: inputs.
        setting: how it is run.
        by_name: pass one value for each of the example's inputs, instead of what the model's ``forward`` takes.
    """
    values, leaves = _inputs(example, setting)
    args, kwargs = (tuple(values.values()), {}) if by_name else example.arguments(values)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad} if setting.gradients else {}
    for module, flag in zip(
        model.modules(), setting.flags(name for name, _ in model.named_modules()).values(), strict=True
    ):
        module.training = flag
    device = next(model.parameters()).device.type
    try:
        with (
            torch.set_grad_enabled(setting.gradients),
            torch.autocast(device, dtype=torch.bfloat16, enabled=setting.autocast),
        ):
            outputs = dict(_named("output", run(*args, **kwargs)))
        roots = {name: t for name, t in outputs.items() if isinstance(t, torch.Tensor) and t.requires_grad}
        if setting.gradients:
            for name, tensor in outputs.items():
                outputs[name] = tensor.detach() if isinstance(tensor, torch.Tensor) else tensor
            outputs |= {f"requires_grad of {name}": name in roots for name in list(outputs)}
        # an input may be called as a parameter is
        others = {f"parameter {name}" if name in leaves else name: p for name, p in parameters.items()}
        return Behaviour(outputs=outputs, gradients=_gradients(roots, {**leaves, **others}))
    except Exception as error:  # noqa: BLE001 - whatever it raises is what it does
        return Behaviour(error=error)
    finally:
        for parameter in parameters.values():
            parameter.grad = None


def _inputs(example: Example, setting: Setting) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Copies of the example's inputs as the setting asks for, and those of which gradients are wanted, by name."""
    leaves: dict[str, torch.Tensor] = {}

    def fresh(name: str, tensor: torch.Tensor) -> torch.Tensor:
        copy = _reshaped(tensor, setting.shapes.get(name, tensor.shape))
        if setting.dtype and copy.is_floating_point():
            copy = copy.to(setting.dtype)
        if setting.gradients and (copy.is_floating_point() or copy.is_complex()):
            leaves[name] = copy.requires_grad_()
            return copy.clone()  # which a forward may change in place
        return copy

    values = example.values.items()
    return {name: fresh(name, v) if isinstance(v, torch.Tensor) else v for name, v in values}, leaves


def _gradients(roots: Mapping[str, torch.Tensor], leaves: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    """The gradients that random cotangents of the roots give to the leaves, by name."""
    if not roots:
        return {}
    # not torch.autograd.grad, which re-entrant checkpoints refuse
    torch.autograd.backward(list(roots.values()), [_cotangent(root) for root in roots.values()])
    return {f"the gradient of {name}": leaf.grad for name, leaf in leaves.items()}


def _reshaped(tensor: torch.Tensor, shape: Shape) -> torch.Tensor:
    """A copy of a tensor in another shape: its entries again and again, or the first of them."""
    copy = tensor.detach().clone()
    for axis, size in enumerate(shape):
        if copy.shape[axis] != size:
            copy = copy.index_select(axis, torch.arange(size, device=copy.device) % copy.shape[axis])
    return copy


def _cotangent(output: torch.Tensor) -> torch.Tensor:
    """Random numbers from a generator of their own, since torch's belongs to the user."""
    numbers = torch.randn(output.shape, generator=torch.Generator().manual_seed(output.numel()))
    return numbers.to(output.device, output.dtype)


def _named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The tensors and numbers within a result, each by a name."""
    if isinstance(value, torch.Tensor | bool | int | float):
        yield name, value
        return
    if (fields := fields_of(value)) is not None:
        value = fields
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from _named(f"{name}[{key!r}]", item)


# Comparison -----------------------------------------------------------------------------------------------------------


def first_difference(pairs: Sequence[Pair], *, close: float) -> Difference | None:
    """The first pair of values that differ, each by a name; ``None`` where all are equal.

    Args:
        pairs: names and the two values.
        close: the norm of a difference that counts as none, relative to the norm of the first value, or to a
            thousandth of the largest one: gradients that are zero but for rounding may be anything.
    """
    tensors: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    for name, a, b in pairs:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            if a.shape != b.shape or a.dtype != b.dtype:
                return Difference(name=name, fault=f"is {_described(a)} and became {_described(b)}")
            if a.numel():
                tensors.append((name, a, b))
        elif isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor) or a != b:
            return Difference(name=name, fault=f"is {_described(a)} and became {_described(b)}")
    plain = [t for t in tensors if _has_norm(t[1])]
    faults = [_exact_difference(*t, close) for t in tensors if not _has_norm(t[1])]
    faults.extend(_norm_differences(plain, close))
    return next(filter(None, faults), None)


def _has_norm(tensor: torch.Tensor) -> bool:
    """Whether torch subtracts such tensors and takes their norms, which it does not with floats of eight bits."""
    return tensor.is_floating_point() and tensor.layout == torch.strided and tensor.dtype.itemsize > 1


def _norm_differences(
    tensors: list[tuple[str, torch.Tensor, torch.Tensor]], close: float
) -> Iterator[Difference | None]:
    """Three calls for all tensors of one type, a network has thousands; none where all are the same to the bit."""
    groups: dict[Any, list[tuple[str, torch.Tensor, torch.Tensor]]] = {}
    for entry in tensors:
        groups.setdefault((entry[1].dtype, entry[1].device), []).append(entry)
    for group in groups.values():
        if all(torch.equal(a, b) for _, a, b in group):
            continue
        names, ours, theirs = zip(*group, strict=True)
        with torch.no_grad():
            sizes = torch.stack(torch._foreach_norm(ours, 2, torch.float64))
            offs = torch.stack(torch._foreach_norm(torch._foreach_sub(ours, theirs), 2, torch.float64))
        limits = close * sizes.clamp(min=1e-3 * sizes.nan_to_num(0, 0, 0).max().item())
        for i in (~(offs <= limits)).nonzero().flatten().tolist():
            if not (sizes[i].isfinite() and offs[i].isfinite()) and torch.allclose(
                ours[i], theirs[i], rtol=close, equal_nan=True
            ):
                continue
            share = (
                f"{float(offs[i] / sizes[i]):.2g} of its norm" if sizes[i] > 0 else f"{float(offs[i]):.2g} from zero"
            )
            yield Difference(name=names[i], fault=f"is off by {share}")


def _exact_difference(name: str, a: torch.Tensor, b: torch.Tensor, close: float) -> Difference | None:
    if a.layout != b.layout:
        return Difference(name=name, fault=f"is {a.layout} and became {b.layout}")
    a, b = (t.to_dense() if t.layout != torch.strided else t.dequantize() if t.is_quantized else t for t in (a, b))
    if a.is_floating_point() and a.dtype.itemsize == 1:
        a, b = a.float(), b.float()
    if a.is_floating_point() or a.is_complex():
        return None if torch.allclose(a, b, rtol=close, equal_nan=True) else Difference(name=name, fault="is another")
    if torch.equal(a, b):
        return None
    values = f": {a.item()} and {b.item()}" if a.numel() == 1 else f" in {int((a != b).sum())} of {a.numel()} entries"
    return Difference(name=name, fault=f"differs{values}")


def _described(value: Any) -> str:
    return (
        f"{tuple(value.shape)} {value.dtype}".replace("torch.", "") if isinstance(value, torch.Tensor) else f"{value}"
    )
