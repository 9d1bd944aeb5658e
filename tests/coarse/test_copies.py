"""Copies of blocks: which, with fresh weights on the old scale, with their context; the model stays as it was."""

import copy

import pytest
import torch
from torch import fx, nn

from pararealize.analysis.blocks import find_blocks
from pararealize.coarse import coarse_block, copies
from pararealize.models import resnet20
from pararealize.tracing.front_end import capture
from pararealize.tracing.module_view import Piece
from tests.plans import coarse_row


@pytest.fixture(scope="module")
def chain():
    return find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32)))


def test_block_choice(chain):
    blocks = chain.blocks  # three stages of three, the first block of the second and third stage changes the space
    assert len(blocks) == 9
    assert copies.block_choice(blocks[3:6], 1) == (0,)
    assert copies.block_choice(blocks[3:6], 2) == (0, 1)
    assert copies.block_choice(blocks[3:6], 9) == (0, 1, 2)
    assert copies.block_choice(blocks[4:6], 1) == (0,)
    assert copies.block_choice(blocks[2:9], 2) == (1, 4)  # both transitions, nothing of the stages
    assert copies.block_choice(blocks[2:9], 3) == (1, 2, 4)


def test_block_copies_are_fresh_and_leave_the_model_alone(chain):
    model = chain.capture.model
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    segment = coarse_row("block", chain.blocks[3].x, chain.blocks[5].y, count=2, j=2)
    one, same = (coarse_block.build_coarse(segment, chain, first=3, last=5, seed=7) for _ in range(2))
    other = coarse_block.build_coarse(segment, chain, first=3, last=5, seed=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    owned = {parameter.data_ptr() for parameter in model.parameters()}
    assert not any(parameter.data_ptr() in owned for parameter in one.parameters())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    originals = dict(model.named_parameters())
    for name, parameter in one.named_parameters():
        found = originals[name.split(".", 2)[2]]
        if parameter.ndim > 1:  # other weights on the same scale
            assert not torch.equal(parameter, found)
            torch.testing.assert_close(parameter.std(), found.std())
        else:  # norms at one and zero
            assert torch.equal(parameter, found)
    r = torch.randn(2, *segment.x.shape, requires_grad=True)
    one(r).square().sum().backward()
    assert all(parameter.grad is not None for parameter in one.parameters())
    assert one(r).shape == (2, *segment.y.shape)
    assert not copies.takes_context(one)
    assert chain.blocks[3].name in str(one)


class Gate(nn.Module):
    """A block that reads the mask next to the value, and has parameters of every sort."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.full((width,), 1e-6))
        self.table = nn.Parameter(0.02 * torch.randn(width) + 3)

    def forward(self, x, mask):
        return x + self.scale * self.linear(self.norm(x) + self.table) * mask


class Gated(nn.Module):
    def __init__(self, width=8, depth=6):
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.layers = nn.ModuleList(Gate(width) for _ in range(depth))
        self.head = nn.Linear(width, 2)

    def forward(self, x, mask):
        mask = mask.unsqueeze(-1).to(x.dtype)
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


def test_context_is_passed_through_and_structure_is_kept():
    torch.manual_seed(0)
    model = Gated()
    inputs = (torch.randn(2, 5, 3), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))
    chain = find_blocks(capture(model, inputs))
    x = chain.blocks[2].x
    module = coarse_block.build_coarse(coarse_row("block", x, x, count=2), chain, first=2, last=4, seed=0)
    assert copies.takes_context(module)
    assert len(module.blocks) == 2
    r, mask = torch.randn(2, *x.shape), inputs[1].unsqueeze(-1).float()
    assert torch.equal(module(r, torch.zeros_like(mask)), r)
    assert not torch.equal(module(r, mask), r)
    named = dict(module.named_parameters())
    scales = [value for name, value in named.items() if name.endswith("scale")]
    tables = [value for name, value in named.items() if name.endswith("table")]
    assert all(bool((value == 1e-6).all()) for value in scales)
    assert len(tables) == 2
    assert not torch.equal(tables[0], tables[1])
    assert all(2.9 < value.mean().item() < 3.1 and value.std().item() < 0.05 for value in tables)


def test_blocks_on_meta_stay_there():
    with torch.device("meta"):
        model = resnet20()
    chain = find_blocks(capture(model, torch.randn(2, 3, 32, 32, device="meta")))
    with torch.device("meta"):
        segment = coarse_row("block", chain.blocks[3].x, chain.blocks[5].y, count=2)
        module = coarse_block.build_coarse(segment, chain, first=3, last=5, seed=0)
    assert all(parameter.is_meta for parameter in module.parameters())


def test_each_copy_reads_its_own_context():
    """Block 1 reads the segment's second context, block 2 its first and second."""

    class Scale(nn.Module):
        def forward(self, r, *context):
            for i, factor in enumerate(context, 1):
                r = r * factor**i
            return r

    both = copies.Copies([Scale(), Scale()], [(1,), (0, 1)], names=["a", "b"], needs_context=True)
    assert both(1.0, 2.0, 3.0) == 3.0 * (2.0 * 3.0**2)


def test_redraw_keeps_zeros_and_frozen_weights_become_trainable():
    """Zero-initialised layers (of residual branches, gates) must not wake up, whatever their reset_parameters does."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[2].weight)
    model[2].running_mean.fill_(3)
    model.requires_grad_(False).eval()
    fresh = copies.redraw(fx.symbolic_trace(copy.deepcopy(model)))
    weights = dict(fresh.named_parameters())
    assert not torch.equal(weights["0.weight"], model[0].weight)
    assert torch.count_nonzero(weights["1.weight"]) == torch.count_nonzero(weights["2.weight"]) == 0
    assert all(weight.requires_grad for weight in weights.values())
    assert fresh.training
    assert torch.count_nonzero(fresh.get_buffer("2.running_mean")) == 0


def test_a_copy_has_only_the_tensors_that_it_reads():
    """A piece sees all parameters of a container; a copy with unread ones would have parameters without gradients."""

    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.unread = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
            self.register_buffer("unread_buffer", torch.zeros(3))
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return self.linear(x * self.read)

    owner = Owner()
    fresh = copies.redraw(copy.deepcopy(Piece(owner, fx.symbolic_trace(owner).graph)))
    assert sorted(fresh.state_dict()) == ["linear.bias", "linear.weight", "read"]
    assert sorted(owner.state_dict()) == ["linear.bias", "linear.weight", "read", "unread", "unread_buffer"]
    assert fresh(torch.ones(2, 3)).shape == (2, 3)
