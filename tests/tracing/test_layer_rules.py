"""What a rule says of a call is what the call gives, with plain sizes and with symbols; most calls have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode

from pararealize.tracing.layer_rules import _OF_ONE, _OF_TWO, layout_of_call, layout_of_layer, layouts_of_recurrence
from pararealize.tracing.leaves import Leaves
from pararealize.tracing.sizes import Sizes, layout_of
from tests.recurrent_layers import LSTM, MAKES, first_states, layer_of, steps_of

LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda c: nn.Linear(c, 5),
    "linear without bias": lambda c: nn.Linear(c, c, bias=False),
    "layer norm": nn.LayerNorm,
    "layer norm without weights": lambda c: nn.LayerNorm(c, elementwise_affine=False),
    "group norm": lambda c: nn.GroupNorm(1, c),
    "batch norm": nn.BatchNorm1d,
    "batch norm in eval mode": lambda c: nn.BatchNorm2d(c).eval(),
    "batch norm without statistics": lambda c: nn.BatchNorm2d(c, track_running_stats=False).eval(),
    "batch norm of volumes": lambda c: nn.BatchNorm3d(c, affine=False),
    **{kind.__name__: (lambda _c, kind=kind: kind()) for kind in (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)},
}


@st.composite
def tensors(draw: st.DrawFn, channels: int, channel: int) -> torch.Tensor:
    """Tensors of one to five axes with these channels, contiguous or not, some with axes of size 1."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    shape[channel % len(shape)] = channels
    x = torch.zeros(shape, dtype=draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])))
    return (
        x.transpose(0, draw(st.integers(0, len(shape) - 1))).contiguous().transpose(0, -1)
        if draw(st.integers(0, 3)) == 0
        else x
    )


def channel_of(name: str) -> int:
    """The axis of the channels."""
    return 1 if name.startswith(("group norm", "batch norm")) else -1


def fakes(leaves: Leaves, *real: torch.Tensor, symbols: bool, channel: int = -1) -> list[torch.Tensor]:
    """Fake tensors like these; equal sizes along equal axes but the channels' are one symbol, where there are any."""
    if not symbols:
        return [leaves.fake(x) for x in real]
    leaves.sizes = sizes = Sizes()
    leaves.mode.shape_env = sizes.env

    def size(axis: int, n: int) -> Any:
        return sizes.symbol(f"x{n}", axis, n, batch=axis == 0)

    with leaves.mode:
        return [
            torch.empty(
                [n if axis == channel % x.ndim else size(axis, n) for axis, n in enumerate(x.shape)], dtype=x.dtype
            )
            for x in real
        ]


def in_numbers(leaves: Leaves, layout: Any) -> Any:
    """A layout at the sizes that symbols stand for: of an axis of one row, a call may take that for certain."""
    sizes = leaves.sizes
    if layout is None or sizes is None:
        return layout
    shape, stride, *rest = layout
    return (*(tuple(sizes.value(size, sizes.hints) for size in axes) for axes in (shape, stride)), *rest)


@given(st.data(), st.sampled_from(sorted(LAYERS)), st.booleans())
def test_layers(data: st.DataObject, name: str, symbols: bool) -> None:
    channels = data.draw(st.integers(1, 4))
    layer = LAYERS[name](channels)
    x = data.draw(tensors(channels, channel_of(name)))
    leaves = Leaves(FakeTensorMode(allow_non_fake_inputs=True))
    layer.to(x.dtype)
    (fake,) = fakes(leaves, x, symbols=symbols, channel=channel_of(name))
    layout = layout_of_layer(layer, (fake,))
    if layout is None:
        return
    with leaves.mode, enable_python_dispatcher():
        assert in_numbers(leaves, layout) == in_numbers(leaves, layout_of(layer(fake)))


@given(st.data(), st.sampled_from(sorted(_OF_ONE | _OF_TWO, key=str)), st.booleans())
def test_functions(data: st.DataObject, function: Any, symbols: bool) -> None:
    x = data.draw(tensors(3, -1))
    y = data.draw(st.sampled_from([x, x[..., :1], x[:1], 2, 0.5, x.double()]))
    real = [x, *([y] if isinstance(y, torch.Tensor) and function in _OF_TWO else [])]
    leaves = Leaves(FakeTensorMode(allow_non_fake_inputs=True))
    args: tuple[Any, ...] = tuple(fakes(leaves, *real, symbols=symbols))
    if function in _OF_TWO and len(args) == 1:
        args = *args, y
    layout = layout_of_call(function, args)
    with leaves.mode, enable_python_dispatcher():
        assert in_numbers(leaves, layout) in (None, in_numbers(leaves, layout_of(function(*args))))


def test_rules_apply_to_what_is_commonest() -> None:
    for name, make in LAYERS.items():
        x = torch.randn(2, 3, *(4,) * {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}.get(type(make(3)), 1))
        assert layout_of_layer(make(x.shape[channel_of(name)]), (x,)) is not None
    x = torch.randn(2, 3, 4)
    assert layout_of_layer(nn.Linear(4, 7), (x,)) == ((2, 3, 7), (21, 7, 1), torch.float32, torch.device("cpu"))
    for function in _OF_ONE:
        assert layout_of_call(function, (x,)) == layout_of(x)
    for function in _OF_TWO:
        assert layout_of_call(function, (x, x)) == layout_of_call(function, (x, 2)) == layout_of(x)


@pytest.mark.parametrize(
    "layer, x",
    [
        (nn.Linear(4, 4), torch.randn(2, 5)),  # which raises
        (nn.Linear(4, 4), torch.randn(2, 4).double()),
        (nn.Linear(4, 4), torch.randn(4, 2).t()),
        (nn.LayerNorm((3, 4)), torch.randn(4, 4)),
        (nn.GroupNorm(2, 4), torch.randn(2, 4, 1, 1)),  # has channels last, too
        (nn.BatchNorm2d(4), torch.randn(2, 4, 1, 1)),
        (nn.BatchNorm1d(4), torch.randn(1, 4)),  # which raises
        (nn.BatchNorm2d(4), torch.randn(4, 4, 3)),
        (nn.BatchNorm2d(4), torch.randn(2, 3, 5, 5)),
        (nn.BatchNorm2d(4).bfloat16(), torch.randn(2, 4, 3, 3)),
        (nn.BatchNorm2d(4, affine=False).bfloat16(), torch.randn(2, 4, 3, 3)),
        (nn.SyncBatchNorm(4), torch.randn(2, 4, 3, 3)),
        (nn.ReLU(inplace=True), torch.randn(2, 4)),
        (nn.ReLU(), torch.ones(2, 4, dtype=torch.int64)),
        (nn.ReLU(), torch.eye(3).to_sparse()),
    ],
)
def test_no_rule_for_other_layers(layer: nn.Module, x: torch.Tensor) -> None:
    assert layout_of_layer(layer, (x,)) is None


@pytest.mark.parametrize(
    "function, args",
    [
        (nn.functional.relu, (torch.randn(2, 4), 1)),  # in place
        (torch.add, (torch.randn(2, 4), torch.randn(4))),
        (torch.add, (torch.randn(1, 4), torch.randn(2, 4))),
        (torch.mul, (torch.randn(2, 4), torch.randn(2, 4).double())),
        (torch.add, (torch.ones(2, dtype=torch.int64), 0.5)),
        (torch.Tensor.relu_, (torch.randn(2, 4),)),
    ],
)
def test_no_rule_for_other_calls(function: Any, args: tuple[Any, ...]) -> None:
    assert layout_of_call(function, args) is None


@pytest.mark.filterwarnings("ignore:.*not supported with oneDNN.*:UserWarning")
@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recurrent_layers(make: Any, dtype: torch.dtype) -> None:
    """Their results have the layouts that they have for real, and in a recording no step is taken."""
    layer, batched = layer_of(make)
    layer.to(dtype)
    x = steps_of(layer, 6, batched).to(dtype)
    given = tuple(h.to(dtype) for h in _flat(first_states(layer, batched)))
    for states in ((), (given if isinstance(layer, LSTM) else given[0],)):
        output, last = layer(x, *states)
        expected = tuple(map(layout_of, (output, *_flat(last))))
        assert layouts_of_recurrence(layer, (x, *states)) == expected
    leaves = Leaves(FakeTensorMode(allow_non_fake_inputs=True))
    (fake,) = fakes(leaves, x, symbols=True)
    output, last = leaves.call(layer, (fake,), {})
    assert leaves.repeated
    assert tuple(in_numbers(leaves, layout_of(value)) for value in (output, *_flat(last))) == expected


def _flat(states: Any) -> tuple[torch.Tensor, ...]:
    return states if isinstance(states, tuple) else (states,)


def test_no_rule_for_other_recurrences() -> None:
    layer, x, h = nn.GRU(3, 4), torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    assert layouts_of_recurrence(layer, (x, h)) is not None
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 3)])
    states = [h[:, :1], h[0], h.double(), (h, h), "h"]
    for args in ((packed,), (x.double(),), (x.long(),), (x[..., :2],), (x[None],), *((x, state) for state in states)):
        assert layouts_of_recurrence(layer, args) is None
    assert layouts_of_recurrence(nn.LSTM(3, 4), (x, h)) is None
    assert layouts_of_recurrence(nn.Linear(3, 4), (x,)) is None
