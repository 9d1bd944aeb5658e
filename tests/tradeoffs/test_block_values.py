"""A network block by block is the network."""

import pytest
import torch
from torch import nn

from pararealize import pararealize
from pararealize.calibration.fitting import calibration_mode
from pararealize.errors import CalibrationError
from pararealize.tradeoffs.block_values import BlockByBlock, network_output, output_error
from tests.models import OverwritesInput, SkipInPlace

from .chains import batches, network


def test_blocks_go_on_from_any_value_to_the_models_output() -> None:
    model, (x,) = network(), batches(1)
    net = pararealize(model, 1, windows=6, example_inputs=x)
    by_block = BlockByBlock(net)
    with calibration_mode(net, 0), torch.no_grad():
        values = by_block.values((x, torch.zeros(len(x))))
        assert torch.equal(values.output, model(x))
        assert torch.equal(network_output(net, x), model(x))
        u = model[0](x)
        for i in range(6):
            assert torch.equal(values.ends[i], u)
            assert torch.equal(by_block.output(values, u, i), model(x))
            u = model[1 + i](u)


def test_values_are_those_before_a_block_wrote_into_them() -> None:
    torch.manual_seed(0)
    model, x = SkipInPlace().eval(), torch.randn(8, 6)
    net = pararealize(model, 1, windows=6, example_inputs=x)
    by_block = BlockByBlock(net)
    with calibration_mode(net, 0), torch.no_grad():
        values, u = by_block.values(x), 1.5 * model.first(x)
        for i, layer in enumerate(model.layers):
            assert torch.equal(values.ends[i], u)
            assert torch.equal(by_block.output(values, u, i), model(x)), "whatever ran before"
            u = layer(u.clone())
        assert torch.equal(values.ends[-1], u)


def test_batches_stay_where_a_model_writes_into_its_input() -> None:
    model, x = OverwritesInput(), torch.randn(3, 8)
    batch, wanted = x.clone(), model(x.clone())
    net = pararealize(model, 1, windows=3, example_inputs=torch.randn(2, 8))
    with calibration_mode(net, 0), torch.no_grad():
        for _ in range(2):
            assert torch.equal(BlockByBlock(net).values(batch).output, wanted)
            assert torch.equal(network_output(net, batch), wanted)
    assert torch.equal(batch, x)


def test_windows_of_several_blocks_are_refused() -> None:
    with pytest.raises(CalibrationError, match="windows have several blocks"):
        BlockByBlock(pararealize(network(), 1, windows=3, example_inputs=batches(1)[0]))


def test_errors_are_relative_to_all_outputs() -> None:
    true = {"a": torch.full((2,), 3.0), "b": torch.full((2,), 4.0), "n": torch.tensor(1)}
    value = {"a": torch.full((2,), 3.0), "b": torch.full((2,), 4.5), "n": torch.tensor(2)}
    assert output_error([(value, true)]) == pytest.approx(0.1)
    assert output_error([(true, true)]) == 0.0
    assert output_error([(torch.ones(1), torch.zeros(1))]) == float("inf")
    assert output_error([(torch.tensor([3 + 0j]), torch.tensor([4 + 3j]))]) == pytest.approx(0.2 * 10**0.5)
    for nothing in ([(true, true)], [({"n": true["n"]},) * 2], [({"loss": true["a"]},) * 2]):
        with pytest.raises(CalibrationError, match="nothing is compared: the mask leaves out every position"):
            output_error(nothing, [torch.zeros(2, dtype=torch.bool)])


def test_padding_of_an_output_with_a_number_a_position_counts_nowhere() -> None:
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)]
    model, x, mask = nn.Sequential(*blocks, nn.Linear(4, 1), nn.Flatten(1)), torch.randn(2, 5, 4), torch.ones(2, 5)
    mask[:, 3:] = 0
    net = pararealize(model, 1, windows=3, example_inputs=x)
    by_block, errors = BlockByBlock(net), []
    with calibration_mode(net, 0):
        for padding in (0.0, 9.0):
            filled = torch.where(mask[..., None] != 0, x, padding)
            values = by_block.values({"input": filled, "attention_mask": mask})
            pairs = [(by_block.output(values, values.ends[1], 2), values.output)]  # without the second block
            errors.append(output_error(pairs, [values.mask], by_block.by_position))
            assert output_error(pairs) != errors[0]
    assert errors[0] == errors[1] > 0
