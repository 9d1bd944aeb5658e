"""What a call's arguments are, what runs a network, and what a capture leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pararealize.errors import CaptureError, DeviceError
from pararealize.network.local.graphed_call import GraphedCall, arguments_of_example, runnable
from pararealize.network.local.module import LocalModule, run_local
from tests.cuda_double import cuda_on_the_cpu
from tests.network.local.test_module import convert

X = torch.randn(4, 8)


def test_examples_are_calls() -> None:
    assert arguments_of_example(X) == ((X,), {})
    assert arguments_of_example((X, 3)) == ((X, 3), {})
    assert arguments_of_example({"x": X}) == ((), {"x": X})


def test_a_network_runs_on_streams_of_its_own_with_its_stacks() -> None:
    net, x = convert("vectors", coarse="linear", cuts="paper")
    with cuda_on_the_cpu():
        local, branches = runnable(run_local(net, stack=True), arguments_of_example(x), streams=True)
        assert isinstance(local, LocalModule)
        assert local.stacks
        assert len(branches) == 3
        assert runnable(net, arguments_of_example(x), streams=False)[1] == ()
        model = nn.Linear(8, 2)
        assert runnable(model, arguments_of_example(x), streams=True) == (model, ())


def test_several_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(8, 2)
    devices = [torch.device("cuda", 0), torch.device("cuda", 1)]
    monkeypatch.setattr("pararealize.network.local.graphed_call.require_gpus", lambda net: devices)
    with pytest.raises(DeviceError, match="needs one GPU, and the network is on 2"):
        runnable(model, arguments_of_example(X), streams=True)


def test_what_cuda_refuses_is_a_capture_error_and_buffers_are_put_back() -> None:
    model = nn.BatchNorm1d(8)

    def fail(call: GraphedCall) -> None:
        with call.capturing():
            model(X)
            raise RuntimeError("not permitted")

    with cuda_on_the_cpu(), pytest.raises(CaptureError, match=r"BatchNorm1d cannot be captured .*: not permitted"):
        fail(GraphedCall(model, (), ((X,), {})))
    assert torch.equal(model.running_mean, torch.zeros(8))  # type: ignore[arg-type]


def test_the_order_of_memory_is_part_of_a_call() -> None:
    images = torch.randn(2, 3, 4, 4)
    with cuda_on_the_cpu():
        call = GraphedCall(nn.Linear(4, 2), (), ((images,), {"scale": 2}))
        assert call.leaves_of(((images,), {"scale": 2})) is not None
        for other in (((images,), {"scale": 3}), ((images,), {}), ((images.double(),), {"scale": 2})):
            assert call.leaves_of(other) is None
        assert call.leaves_of(((images.contiguous(memory_format=torch.channels_last),), {"scale": 2})) is None
