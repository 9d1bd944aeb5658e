"""Trying a module out, against convolutions whose reach is known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.fields.probe import Probe, UnprobedError, try_out
from pararealize.tracing.front_end import capture
from tests.spaces import space


class Decoder(nn.Module):
    """Layers that read one mask, of the order and of padding, which is made from the token ids."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0) for _ in range(4)]
        self.layers = nn.ModuleList(layers)

    def forward(self, ids):
        x, places = self.embed(ids), torch.arange(ids.shape[1], device=ids.device)
        mask, padding = places[:, None] < places, ids == 0
        for layer in self.layers:
            x = layer(x, src_mask=mask, src_key_padding_mask=padding)
        return x


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 4), st.integers(0, 4), st.integers(1, 3), st.integers(6, 20))
def test_a_convolution(behind, ahead, stride, size):
    """Padded so that position o reads from stride·o - behind to stride·o + ahead."""
    conv = nn.Conv1d(2, 3, behind + ahead + 1, stride)
    module = nn.Sequential(nn.ConstantPad1d((behind, ahead), 0.0), conv)
    length = module(torch.zeros(1, 2, size)).shape[-1]
    ((s, b, a),) = try_out(module, space(2, size), space(3, length)).axes
    assert s == stride
    assert b <= behind
    assert a <= ahead
    if behind < size // 2 and ahead < size // 2 and stride == 1:
        assert min(b, 1) == min(behind, 1)
        assert min(a, 1) == min(ahead, 1)
        if not behind or not ahead:
            assert (b, a) == (behind, ahead)


def test_zero_layers_hide_nothing_and_masked_weights_stay_masked():
    module = nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), nn.Conv1d(2, 2, 1))
    nn.init.zeros_(module[1].weight)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert try_out(module, space(2, 12), space(2, 12)).axes == ((1, 1, 1),)
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    with torch.no_grad():
        module[0].weight[..., 2] = 0
    assert try_out(module, space(2, 12), space(2, 12)).axes == ((1, 1, 0),)


def test_what_no_gradient_flows_through_is_seen():
    class Largest(nn.Module):
        def forward(self, x):
            return x / x.detach().abs().amax(-1, keepdim=True)

    ((_, behind, ahead),) = try_out(Largest(), space(2, 12), space(2, 12)).axes
    assert min(behind, ahead) >= 6


def test_context_is_of_the_example_and_random_states_stay():
    chain = find_blocks(capture(Decoder(), torch.randint(1, 9, (2, 12))))
    assert chain.blocks[0].context
    state = torch.get_rng_state()
    assert Probe(chain).measure(chain.blocks[0]).axes == ((1, 11, 0),)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("padding", [0, 3])
def test_rows_of_padding_that_attend_to_everything_are_not_the_rule(padding):
    """As Hugging Face's decoders have them, padded in front: a row that may see nothing sees all.

    Nothing may then be mixed: what reads earlier rows reads those, too.
    """

    class Attention(nn.Module):
        def forward(self, x, mask):
            allowed = torch.ones(12, 12).tril().bool() & mask[:, None]
            allowed = allowed | ~allowed.any(-1, keepdim=True)
            return x + (x @ x.mT).masked_fill(~allowed, -1e9).softmax(-1) @ x

    mask = (torch.arange(12) >= padding).expand(2, 12)
    (axis,) = try_out(Attention(), space(12, 8, channel=1), space(12, 8, channel=1), context=[mask]).axes
    assert axis == ((1, 0, 0) if padding else (1, 11, 0))
    (axis,) = try_out(Attention(), space(12, 8, channel=1), space(12, 8, channel=1), context=[mask & False]).axes
    assert axis[2] == 11


def test_two_values_side_by_side_are_no_order_of_channels():
    """A value and a sum of skips, packed along the channels: the second is read by itself alone."""

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 8, 1)

        def forward(self, x):
            y, skip = self.conv(x[:, :4]).chunk(2, 1)
            return torch.cat([x[:, :4] + y, x[:, 4:] + skip], 1)

    class Triangular(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x):
            return self.weight.tril() @ x

    assert not try_out(Packed(), space(8, 12), space(8, 12)).ordered_channels
    assert try_out(Triangular(), space(8, 12), space(8, 12)).ordered_channels


def test_what_does_not_run_is_said():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("no kernel")

    with pytest.raises(UnprobedError, match=r"does not run on random values \(no kernel\)"):
        try_out(Broken(), space(2, 12), space(2, 12))


class Counting(nn.Module):
    """A causal layer whose values change with each call."""

    def __init__(self, where):
        super().__init__()
        self.conv, self.where, self.calls = nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(2, 2, 3)), where, []
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.calls.append(1)
        self.steps += 1
        return self.conv(x) * (self.steps if self.where == "buffer" else len(self.calls))


@pytest.mark.parametrize("where", ["buffer", "list"])
def test_what_changes_with_each_call_is_tried_from_the_same_state(where):
    """Every output was another one in each run, and a causal layer seemed to read everything."""
    module = Counting(where)
    assert try_out(module, space(2, 9), space(2, 9)).axes == ((1, 2, 0),)
    assert not module.calls
    assert not module.steps
