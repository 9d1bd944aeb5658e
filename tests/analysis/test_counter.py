"""Operations and elements of single modules, by hand."""

import pytest
import torch
from torch import nn

from pararealize.analysis.counter import count_operations


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolutions_cost_twice_as_much_backward(groups, transposed):
    """torch's own formula multiplies the weight gradient of a depthwise convolution by its channels (seen in 2.15)."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    module = kind(8, 16, 3, padding=1, groups=groups, bias=False)
    (forward, backward), (written, back) = count_operations(
        module, lambda _: [torch.empty(5, 8, 6, 6, requires_grad=True)]
    )
    assert forward == 5 * 2 * 9 * 8 * 16 * 36 // groups
    assert backward == 2 * forward
    assert written == 5 * 16 * 36
    assert (
        back == 5 * 16 * 36 + 5 * 8 * 36
    )  # gradients of output and input; that of the weight, once a batch, is left out


def test_elements_in_place_are_written_and_views_are_not():
    module = nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Unflatten(1, (2, 3)))
    assert count_operations(module, lambda _: [torch.empty(4, 3, 2)]) == ((0, 0), (24, 0))
