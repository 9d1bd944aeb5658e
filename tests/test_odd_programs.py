"""Programs that are unusual in one respect convert and are right, or are refused by an error that says why."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pararealize import layer_parallel, pararealize, restack
from pararealize.errors import MultigridError, PararealizeError, RestackError
from tests.odd_programs import CONVERTED, REFUSED, Program, Residuals

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own about sparse, nested and quantised tensors


def called(net: nn.Module, inputs: Any) -> Any:
    with torch.no_grad():  # a model that was made in inference mode takes part in no autograd
        if isinstance(inputs, dict):
            return net(**inputs)
        return net(*inputs) if isinstance(inputs, tuple) else net(inputs)


def built(name: str) -> Program:
    torch.manual_seed(0)
    model, inputs = CONVERTED[name]()
    return model.eval(), inputs


def assert_same(result: Any, expected: Any) -> None:
    if isinstance(expected, Tensor) and expected.layout != torch.strided:
        assert_same(result.to_dense(), expected.to_dense())
    elif isinstance(expected, Tensor) and not expected.is_floating_point():
        assert torch.equal(result, expected)
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(result, expected, equal_nan=True)
    elif isinstance(expected, dict):
        assert result.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(result[key], value)
    elif isinstance(expected, list | tuple):
        assert len(result) == len(expected)
        for value, item in zip(result, expected, strict=True):
            assert_same(value, item)
    else:
        assert result == expected


@pytest.mark.parametrize("name", CONVERTED)
def test_odd_programs_convert_and_are_the_original(name: str) -> None:
    model, inputs = built(name)
    expected = called(model, inputs)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    one = pararealize(model, n=1, example_inputs=inputs)
    assert_same(called(one, inputs), expected)
    net = pararealize(model, n=3, coarse="linear", example_inputs=inputs)
    with torch.no_grad():
        assert_same(net.iterate(inputs, 2), expected)
    twin = copy.deepcopy(net)
    assert_same(called(twin, inputs), called(net, inputs))
    net.load_original_state_dict(net.original_state_dict())
    assert net.original_state_dict().keys() == state.keys()
    assert not any(tensor.is_inference() for tensor in (*net.parameters(), *net.buffers()))
    assert str(net.plan)
    assert net.code
    for key, value in model.state_dict().items():
        if value.layout == torch.strided and not value.is_meta:
            assert torch.equal(value.cfloat().nan_to_num(), state[key].cfloat().nan_to_num()), key


@pytest.mark.parametrize("name", CONVERTED)
def test_odd_residual_networks_restack_and_run_by_multigrid(name: str) -> None:
    model, inputs = built(name)
    if not isinstance(model, Residuals):
        return
    expected = called(model, inputs)
    with contextlib.suppress(RestackError):  # layers that are shared, or whose sums are of other shapes
        assert_same(called(restack(model, "euler", example_inputs=inputs, strict=False), inputs), expected)
    with contextlib.suppress(MultigridError):  # and batch statistics, which two levels would count twice
        called(copy.deepcopy(layer_parallel(model, example_inputs=inputs, coarsening=2)), inputs)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("conversion", ["pararealize", "restack", "layer_parallel"])
def test_odd_programs_are_refused_by_typed_errors(name: str, conversion: str) -> None:
    build, kind, words = REFUSED[name]
    model, inputs = build()
    if conversion == "pararealize":
        with pytest.raises(kind, match=words):
            pararealize(model, n=3, coarse="linear", example_inputs=inputs)
        return
    with contextlib.suppress(PararealizeError):  # where it is a matter of cutting alone, the others take it
        (restack if conversion == "restack" else layer_parallel)(model, example_inputs=inputs)  # type: ignore[operator]
