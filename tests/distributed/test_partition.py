"""Which rank owns which parts, and which values cross."""

from __future__ import annotations

import torch

from pararealize import pararealize
from pararealize.distributed.assignment import assign
from pararealize.distributed.partition import SegmentPartition, TensorPaths, tensors_of
from tests.models import LanguageModel, MaskedTransformer, Perceptron, SharedBias


def partition_of(model, inputs, n=3, **arguments):
    net = pararealize(model, n=n, example_inputs=inputs, **arguments)
    return net, SegmentPartition.of(net, assign(net.plan, n))


def test_a_mask_from_the_inputs_does_not_cross() -> None:
    _, partition = partition_of(MaskedTransformer(), torch.randint(0, 11, (2, 5)))
    assert partition.everywhere
    assert [(value.name, value.readers, value.differentiable) for value in partition.values] == [("x_1", (1, 2), True)]
    assert all("context" in partition.owned[rank] for rank in range(3))


def test_a_table_with_parameters_crosses_once_a_reader() -> None:
    net, partition = partition_of(SharedBias(), torch.randn(2, 6), coarse="exact")
    assert not partition.everywhere
    crossing = {value.name: value.readers for value in partition.values if value.readers}
    assert crossing == dict.fromkeys(partition.parts["g2"].reads, (1,))
    assert partition.owned[0] == ("context", "stem", "g1")
    assert partition.owned[1] == ("C2", "g2", "F1")
    assert partition.parts["F1"].target == "segments.g2"
    assert tensors_of(net, net.network_parts["F1"]) == TensorPaths()


def test_an_empty_stem_has_no_gradient() -> None:
    _, partition = partition_of(Perceptron(), torch.randn(2, 8), source="stem")
    assert [(value.name, value.differentiable) for value in partition.values] == [("x_1", False)]


def test_shared_layers_have_one_name() -> None:
    net, _ = partition_of(LanguageModel(shared=True), torch.randint(0, 11, (2, 5)), coarse="linear")
    assert {path for path in tensors_of(net, net.network_parts["g3"]).modules if path.startswith("layers")} == {
        path for path in tensors_of(net, net.network_parts["g1"]).modules if path.startswith("layers")
    }
