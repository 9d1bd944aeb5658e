"""Original and parareal network on the same batches; both are left as found."""

import copy

import pytest
import torch
from torch import nn

from pararealize import calibrate, compare, fine_tune, pararealize
from pararealize.errors import CalibrationError, ExampleError, ModelError
from tests.models import MaskedTransformer, OverwritesInput, Perceptron


def test_a_network_beside_its_original():
    model = Perceptron(3)
    net = pararealize(model, 2, coarse="exact", example_inputs=torch.randn(2, 8))
    net.train()
    model[0].eval()
    batches = [(torch.randn(5, 8), torch.randint(2, (5,))) for _ in range(3)]
    told = []
    result = compare(net, model, batches, batch_sizes=(1, 3), rounds=1, report=told.append)
    with torch.no_grad():
        x, labels = (torch.cat(part) for part in zip(*batches, strict=True))
        y, other = model(x), net(x)
    assert result.samples == 15
    assert result.relative_error == pytest.approx(float((other - y).norm() / y.norm()), rel=1e-4)
    assert result.original.accuracy == pytest.approx(float((y.argmax(1) == labels).double().mean()))
    assert [row.batch for row in result.latencies] == [1, 3]
    assert all(row.original > 0 for row in result.latencies)
    assert told[-1] == "measuring calls with batch 3"
    assert net.training
    assert not model[0].training


def test_one_segment_is_the_original():
    model = MaskedTransformer(2)
    net = pararealize(model, 1, example_inputs=torch.ones(2, 5, dtype=torch.long))
    batches = [{"ids": torch.randint(1, 11, (4, 5)), "labels": torch.randint(3, (4,))}]
    result = compare(net, model, batches, batch_sizes=())
    assert (result.relative_error, result.same_class, result.latencies) == (0.0, 1.0, ())
    assert result.original == result.parareal


def test_classes_of_a_signal_are_its_channels():
    blocks = [nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.Tanh()) for _ in range(3)]
    model, x = nn.Sequential(*blocks, nn.Conv1d(4, 3, 1)), torch.randn(5, 4, 9)
    net = pararealize(model, 2, example_inputs=x, coarse="linear")
    result = compare(net, model, [x], logits=True, batch_sizes=())
    with torch.no_grad():
        assert result.same_class == pytest.approx(float((net(x).argmax(1) == model(x).argmax(1)).double().mean()))


def test_padding_of_numbers_a_position_counts_nowhere():
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)]
    mask, x = torch.tensor([[1, 1, 1, 0, 0]] * 2), torch.randn(2, 5, 4)
    model = nn.Sequential(*blocks, nn.Linear(4, 1), nn.Flatten(1))
    net = pararealize(model, 2, example_inputs=x, coarse="linear")
    results = []
    for padding in (0.0, 9.0):
        batch = {"input": torch.where(mask[..., None] != 0, x, padding), "attention_mask": mask}
        results.append(compare(net, model, [batch], batch_sizes=()).relative_error)
    assert results[0] == results[1] > 0


def test_batches_stay_where_a_model_writes_into_its_input():
    model, x = OverwritesInput(), torch.randn(5, 8)
    net = pararealize(model, 1, example_inputs=torch.randn(2, 8))
    batch = x.clone()
    assert compare(net, model, [batch], batch_sizes=(5,), rounds=1).relative_error == 0
    assert torch.equal(batch, x)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Perceptron(3)

    def forward(self, x, attention_mask=None, /, *more):
        return self.layers(x * attention_mask if attention_mask is not None else x) + sum(more)


def test_batches_of_several_inputs_are_those_of_a_calibration():
    """By place or by name, also where the original takes them by place alone; a mask is never left out."""
    model, x, mask, more, labels = TwoInputs(), *torch.randn(3, 4, 8).split(1), torch.tensor([0, 1, 1, 0])
    inputs = (x[0], mask[0], more[0, :, :2])
    net = pararealize(model, 2, example_inputs=inputs, coarse="linear")
    named = {"x": inputs[0], "attention_mask": inputs[1], "more_0": inputs[2], "labels": labels}
    calibrate(net, [(inputs, labels)])
    results = [compare(net, model, [batch], batch_sizes=(2,), rounds=1) for batch in ((inputs, labels), named)]
    with torch.no_grad():
        wanted = (net(*inputs) - model(*inputs)).norm() / model(*inputs).norm()
    assert results[0].relative_error == results[1].relative_error == pytest.approx(float(wanted), rel=1e-4)
    assert results[0].samples == 4
    teacher = copy.deepcopy(model)
    nn.init.zeros_(teacher.layers[0].weight)
    assert "TwoInputs, given" in fine_tune(net, [named], steps=1, teacher=teacher).teacher
    for batch in (inputs[:2], inputs[0]):
        with pytest.raises(ExampleError, match="TwoInputs was converted with x, attention_mask, more_0; pass"):
            compare(net, model, [batch])


def test_refusals():
    model = Perceptron(3)
    net = pararealize(model, 2, example_inputs=torch.randn(2, 8))
    with pytest.raises(ModelError, match="net is a Perceptron and original a PararealPerceptron"):
        compare(model, net, [])
    with pytest.raises(CalibrationError, match="rounds = 0 and batch_sizes = "):
        compare(net, model, [], rounds=0)
    with pytest.raises(ExampleError, match="the batches are empty"):
        compare(net, model, [])
    for wrong in (torch.randn(3, 9), torch.randn(3, 1, 9)):
        with pytest.raises(ExampleError, match="Perceptron does not take this batch: RuntimeError"):
            compare(net, model, [wrong])
    with pytest.raises(ExampleError, match=r"a batch holds no sample: input \(0, 8\); leave it out"):
        compare(net, model, [torch.randn(2, 8), torch.randn(0, 8)])
