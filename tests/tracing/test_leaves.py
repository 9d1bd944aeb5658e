"""Leaves on fake tensors give the shapes that they give for real, and are left as found."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from pararealize.tracing.layer_rules import layout_of_layer
from pararealize.tracing.leaves import _PURE, Leaves

MODULES = [
    (nn.Linear(6, 5), (2, 3, 6)),
    (nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9)),
    (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 5, 5)),
    (nn.Conv3d(4, 2, 2), (1, 4, 3, 3, 3)),
    (nn.BatchNorm1d(4), (3, 4)),
    (nn.BatchNorm2d(4), (2, 4, 5, 5)),
    (nn.BatchNorm3d(4), (2, 4, 3, 3, 3)),
    (nn.LayerNorm(6), (2, 3, 6)),
    (nn.GroupNorm(2, 4), (2, 4, 5, 5)),
    (nn.ReLU(), (2, 3)),
    (nn.GELU(), (2, 3)),
    (nn.SiLU(), (2, 3)),
    (nn.Tanh(), (2, 3)),
    (nn.Sigmoid(), (2, 3)),
    (nn.MaxPool2d(2, ceil_mode=True), (2, 4, 5, 5)),
    (nn.AvgPool2d(3, padding=1), (2, 4, 5, 5)),
]


def count_calls(*modules):
    """A list that gets an item for every call of one of these modules."""
    calls = []

    def counted(module, *args, **kwargs):
        calls.append(module)
        return module._call_impl(*args, **kwargs)

    for module in modules:
        module._compiled_call_impl = partial(counted, module)
    return calls


@pytest.fixture
def leaves():
    return Leaves(FakeTensorMode(allow_non_fake_inputs=True))


def with_fakes(leaves, module):
    """The module with fake parameters and buffers, as the recorder swaps them."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = leaves.fake(tensor)
                    leaves.real[id(tensors[name])] = tensor
    return module


def test_every_layer_that_is_run_once_is_tested():
    assert {type(module) for module, _ in MODULES} == _PURE


@pytest.mark.parametrize("module, shape", MODULES, ids=lambda value: type(value).__name__)
def test_shapes_are_those_of_a_real_run_the_second_time_too(leaves, module, shape):
    x = torch.randn(shape)
    expected = module(x)
    fake, calls = leaves.fake(x), count_calls(module)
    assert (fake.shape, fake.stride(), fake.device) == (x.shape, x.stride(), x.device)
    with leaves.mode:
        first, second = (leaves.call(module, (fake,), {}) for _ in range(2))
    assert len(calls) == (layout_of_layer(module, (fake,)) is None)  # else by the layer's definition
    for result in (first, second):
        assert isinstance(result, FakeTensor)
        assert (result.shape, result.dtype, result.device) == (expected.shape, expected.dtype, expected.device)
        assert result.stride() == expected.stride()
    assert first is not second
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata


@pytest.mark.parametrize(
    "change",
    [
        "other settings",
        "other shape",
        "other type",
        "other layout",
        "other width",
        "in place",
        "a hook",
        "several inputs",
    ],
)
def test_calls_that_may_give_something_else_are_run(leaves, change):
    """After a call that is known: what differs from it in anything that matters is run anew."""
    first, x = nn.Conv2d(4, 4, 3), torch.randn(2, 4, 6, 6)
    module, other, kwargs = nn.Conv2d(4, 4, 3), x, {}
    if change == "other settings":
        module = nn.Conv2d(4, 4, 3, stride=2)
    elif change == "other width":
        module = nn.Conv2d(4, 7, 3)
    elif change == "other shape":
        other = torch.randn(2, 4, 5, 6)
    elif change == "other type":
        module, other = module.double(), x.double()
    elif change == "other layout":
        other = x.to(memory_format=torch.channels_last)
    elif change == "in place":
        first, module = nn.ReLU(), nn.ReLU(inplace=True)
    elif change == "a hook":
        module.register_forward_hook(lambda module, args, output: output[:, :1])
    else:
        first, module, kwargs = nn.Linear(6, 6), nn.Linear(6, 6), {"input": x}
    calls = count_calls(first, module)
    with leaves.mode:
        leaves.call(first, (leaves.fake(x),), {})
        arguments = () if kwargs else (leaves.fake(other),)
        fakes = {name: leaves.fake(value) for name, value in kwargs.items()}
        result = leaves.call(module, arguments, fakes)
    assert calls.count(module) == 1
    assert result.shape == module(*([] if kwargs else [other]), **kwargs).shape
    if change == "in place":
        assert result is arguments[0]


class Opaque(nn.Module):
    """Its output depends on the values of a buffer, which fake tensors do not have."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("rows", torch.tensor(2))
        self.absent = None
        self.register_parameter("nothing", None)

    def forward(self, x, *, more):
        self.rows += 1
        noise = torch.rand(1)
        return [self.linear(x)[: int(self.rows)] + noise, {"more": more.sum(), "plain": 4}]


def test_what_fake_tensors_cannot_do_is_run_on_zeros_and_nothing_of_it_stays(leaves):
    real = Opaque()
    values = {name: value.clone() for name, value in real.state_dict().items()}
    kept = dict(real.state_dict(keep_vars=True))
    module = with_fakes(leaves, real)
    fakes = module.state_dict(keep_vars=True)
    state = torch.get_rng_state()
    with leaves.mode:
        x = leaves.fake(torch.ones(5, 3))
        result, others = leaves.call(module, (x,), {"more": leaves.fake(torch.ones(2))})
    assert isinstance(result, FakeTensor)
    assert result.shape == (3, 3), "of the five rows, as many as the buffer says after one more"
    assert isinstance(others["more"], FakeTensor)
    assert (others["more"].shape, others["plain"]) == ((), 4)
    assert all(value is fakes[name] for name, value in module.state_dict(keep_vars=True).items())
    assert all(torch.equal(kept[name], value) for name, value in values.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_fakes_of_other_layouts_and_classes(leaves):
    sparse = leaves.fake(torch.eye(3).to_sparse())
    assert sparse.layout == torch.sparse_coo
    parameter = leaves.fake(nn.Parameter(torch.zeros(2, 3)))
    assert isinstance(parameter, FakeTensor)
    assert (parameter.shape, parameter.dtype) == ((2, 3), torch.float32)
    made = leaves.empty((2, 3), (1, 2), torch.bfloat16, torch.device("cuda:1"))
    assert (made.stride(), made.dtype, made.device) == ((1, 2), torch.bfloat16, torch.device("cuda:1"))


@pytest.mark.parametrize(
    "product, shapes",
    [
        (torch.matmul, [(2, 3, 4), (4, 5)]),
        (torch.Tensor.__matmul__, [(2, 1, 3, 4), (6, 4, 2)]),
        (nn.functional.linear, [(2, 3, 4), (5, 4), (5,)]),
    ],
)
def test_a_product_of_equal_tensors_is_made_once(leaves, product, shapes):
    expected = product(*(torch.zeros(shape) for shape in shapes))
    for repeated in (False, True):
        with leaves.mode:
            result = leaves.call_function(product, [leaves.fake(torch.zeros(shape)) for shape in shapes], {})
        assert (result.shape, result.stride(), result.dtype) == (expected.shape, expected.stride(), expected.dtype)
        assert leaves.repeated == repeated
    leaves.forget_results()
    with leaves.mode:
        leaves.call_function(product, [leaves.fake(torch.zeros(shape)) for shape in shapes], {})
    assert not leaves.repeated


def test_a_dropout_that_drops_nothing_is_its_input_unless_a_hook_is_on_it(leaves):
    dropout, x = nn.Dropout().eval(), leaves.fake(torch.randn(2, 3))
    with leaves.mode:
        assert leaves.call(dropout, (x,), {}) is x
        assert leaves.call_function(nn.functional.dropout, (x,), {"training": False}) is x
        assert leaves.call_function(torch.dropout, (x, 0.0, True), {}) is x
        dropout.register_forward_hook(lambda _module, _inputs, output: output[:1])
        assert leaves.call(dropout, (x,), {}).shape == (1, 3)
        assert leaves.call(nn.Dropout(), (x,), {}) is not x
