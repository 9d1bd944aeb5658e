"""Rules of operations that move dimensions about or mix them, against the support of the gradient."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.field_oracle import Lambda, assert_covers

EIGHT = torch.ones(8, 8, dtype=torch.float64)
FOUR = EIGHT[:, :4].expand(2, 8, 8, 4)

# What a piece does with a map of 4×8×8, and its field; strides of 1×1 are left out.
PIECES = {
    "residual": (lambda m, x: x + m.conv(m.conv(x)), "5×5, start -2×-2"),
    "residual in place": (lambda m, x: m.conv(x).add_(x).relu_(), "3×3, start -1×-1"),
    "squeeze-excite": (lambda m, x: x * x.mean((2, 3), keepdim=True).sigmoid(), "global"),
    "squeeze-excite by pool": (lambda m, x: x * F.adaptive_avg_pool2d(x, 1).sigmoid(), "global"),
    "concatenate channels": (lambda m, x: torch.cat([x, m.conv(x)], 1).chunk(2, dim=1)[1], "3×3, start -1×-1"),
    "concatenate space": (lambda m, x: torch.cat([x[:, :, :2], m.conv(x)], dim=2)[:, :, 2:], "4×3, start -1×-1"),
    "shuffle": (lambda m, x: x.view(2, 2, 2, 8, 8).transpose(1, 2).reshape(2, 4, 8, 8), "1×1, start 0×0"),
    "channels last and back": (
        lambda m, x: m.linear(m.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        "3×3, start -1×-1",
    ),
    "flatten and back": (
        lambda m, x: m.conv(x).flatten(2).transpose(1, 2).transpose(1, 2).unflatten(2, (8, 8)),
        "global",
    ),
    "layer norm over channels": (
        lambda m, x: F.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2),
        "1×1, start 0×0",
    ),
    "group norm": (lambda m, x: F.group_norm(x, 2), "global"),
    "slices": (lambda m, x: m.conv(x)[..., 1::2, ::2], "3×3, stride 2×2, start 0×-1"),
    "halves": (lambda m, x: torch.cat([x[:, :2], x[:, 2:] * 2], 1), "1×1, start 0×0"),
    "unsqueeze": (lambda m, x: m.conv(x).unsqueeze(2).squeeze(2), "3×3, start -1×-1"),
    "move dimensions": (lambda m, x: torch.movedim(m.linear(torch.movedim(x, 1, -1)), -1, 1), "1×1, start 0×0"),
    "space transposed": (lambda m, x: m.conv(x).transpose(2, 3), "global"),
    "matmul over channels": (lambda m, x: torch.matmul(m.linear.weight, x.flatten(2)).view(2, 4, 8, 8), "global"),
    "column attention": (
        lambda m, x: F.scaled_dot_product_attention(*[x.permute(0, 3, 2, 1)] * 3).permute(0, 3, 2, 1),
        "all×1, start 0×0",
    ),
    "softmax over width": (lambda m, x: m.conv(x).softmax(-1), "3×all, start -1×0"),
    "softmax over channels": (lambda m, x: m.conv(x).softmax(1), "3×3, start -1×-1"),
    "roll": (lambda m, x: torch.roll(m.conv(x), 1, 3), "3×all, start -1×0"),
    "pixel shuffle": (lambda m, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), "2×2, start -1/2×-1/2"),
    "max over height": (lambda m, x: m.conv(x) + x.amax(2, keepdim=True), "all×3, start 0×-1"),
    "stack and unbind": (lambda m, x: torch.stack([x, m.conv(x)], dim=1).unbind(1)[1], "3×3, start -1×-1"),
    "narrow": (lambda m, x: m.conv(x).narrow(2, 2, 4), "3×3, start 1×-1"),
    "select": (lambda m, x: m.conv(x) + x.select(2, 3).unsqueeze(2), "all×3, start 0×-1"),
    "dilated branch": (lambda m, x: x + F.conv2d(x, m.conv.weight, padding=2, dilation=2), "5×5, start -2×-2"),
    "strided branches": (
        lambda m, x: F.avg_pool2d(m.conv(x), 2) + F.conv2d(x, m.conv.weight, stride=2, padding=1),
        "4×4, stride 2×2, start -1×-1",
    ),
    "different strides": (lambda m, x: x + F.interpolate(F.avg_pool2d(x, 2), scale_factor=2), "3×3, start -1×-1"),
    "repeat": (lambda m, x: m.conv(x).repeat(1, 1, 2, 1), "all×3, stride 1/2×1, start 0×-1"),
    "expand": (lambda m, x: m.conv(x) + F.adaptive_avg_pool2d(x, (1, 8)).expand(2, 4, 8, 8), "all×3, start 0×-1"),
    "shape alone": (lambda m, x: m.conv(x) + torch.zeros_like(x.flip(3)) + x.flip(2).new_ones(8), "3×3, start -1×-1"),
    "product": (lambda m, x: x * m.conv(x) + operator.neg(x) / 2, "3×3, start -1×-1"),
    "kept mean": (lambda m, x: m.conv(x) + x.mean(2, keepdim=True).expand_as(x), "all×3, start 0×-1"),
    "mean": (lambda m, x: m.conv(x) + x.mean(-2).unsqueeze(2), "all×3, start 0×-1"),
    "mean of everything": (lambda m, x: x * x.mean(), "global"),
    "maximum with a constant": (lambda m, x: torch.max(m.conv(x), m.linear.bias[0]), "3×3, start -1×-1"),
    "maximum of two": (lambda m, x: torch.max(x, m.conv(x)), "3×3, start -1×-1"),
    "norm": (lambda m, x: x / x.norm(2, dim=3, keepdim=True), "1×all, start 0×0"),
    "normalise": (lambda m, x: F.normalize(m.conv(x), dim=2), "all×3, start 0×-1"),
    "layer norm over width": (lambda m, x: F.layer_norm(x, (8,)), "1×all, start 0×0"),
    "layer norm over space": (lambda m, x: F.layer_norm(x, (8, 8)), "global"),
    "linear over width": (lambda m, x: F.linear(x, EIGHT), "1×all, start 0×0"),
    "product from the right": (lambda m, x: torch.matmul(x, EIGHT), "1×all, start 0×0"),
    "product from the left": (lambda m, x: torch.matmul(EIGHT, x), "all×1, start 0×0"),
    "product of maps": (lambda m, x: x @ m.conv(x), "global"),
    "product plus": (
        lambda m, x: torch.baddbmm(x.flatten(0, 1), x.flatten(0, 1), EIGHT.expand(8, 8, 8)).view(2, 4, 8, 8),
        "1×all, start 0×0",
    ),
    "product with a vector": (lambda m, x: m.conv(x) + torch.matmul(x, EIGHT[0]).unsqueeze(3), "global"),
    "attention to fixed keys": (
        lambda m, x: F.scaled_dot_product_attention(x.transpose(1, 3), FOUR, FOUR).transpose(1, 3),
        "1×1, start 0×0",
    ),
    "transposed twice": (lambda m, x: m.conv(x).transpose(2, 3).transpose(-1, -2), "3×3, start -1×-1"),
    "matrix transposed twice": (lambda m, x: (m.conv(x).mT * 2).mT * 2, "3×3, start -1×-1"),
    "permuted by a tuple": (lambda m, x: m.conv(x).permute((0, 3, 1, -2)).permute(0, 2, 3, 1), "3×3, start -1×-1"),
    "several dimensions moved": (
        lambda m, x: m.conv(x).movedim((1, 2), (-1, 1)).movedim((3, 1), (1, 2)),
        "3×3, start -1×-1",
    ),
    "new dimension": (lambda m, x: m.conv(x)[:, :, None].select(2, 0), "3×3, start -1×-1"),
    "new dimension behind": (lambda m, x: m.conv(x)[..., None][:, :, 1:, :, 0], "3×3, start 0×-1"),
    "one row": (lambda m, x: m.conv(x) + x[:, :, 3].unsqueeze(2), "all×3, start 0×-1"),
    "indexed by a tensor": (lambda m, x: x[:, :, torch.arange(8)], "global"),
    "squeezed where nothing is to squeeze": (lambda m, x: m.conv(x).squeeze(2), "3×3, start -1×-1"),
    "stacked behind": (lambda m, x: torch.stack([x, m.conv(x)], -1).sum(-1), "3×3, start -1×-1"),
    "half of space": (lambda m, x: m.conv(x).chunk(2, 2)[0], "all×3, stride 2×1, start 0×-1"),
    "columns appended": (lambda m, x: torch.cat([x, m.conv(x)], dim=-1)[..., 8:], "3×10, start -1×-1"),
    "split and merged": (lambda m, x: m.conv(x).unflatten(2, (2, 4)).flatten(2, 3), "all×3, start 0×-1"),
    "one-sized dimensions": (lambda m, x: m.conv(x).view(2, 1, 4, 8, 1, 8).reshape(2, 4, 8, 8), "3×3, start -1×-1"),
    "channels repeated": (lambda m, x: m.conv(x).repeat(1, 2, 1, 1), "3×3, start -1×-1"),
    "another's type": (lambda m, x: m.conv(x).type_as(x.flip(2)), "3×3, start -1×-1"),
    "chosen": (lambda m, x: torch.where(x > 0.5, m.conv(x), x), "3×3, start -1×-1"),
    "running sum": (lambda m, x: m.conv(x).cumsum(3), "global"),
    "flip": (lambda m, x: m.conv(x).flip(2), "all×3, start 0×-1"),
    "strided slice": (lambda m, x: m.conv(x)[:, :, 2:7:3, -5:], "3×3, stride 3×1, start 1×2"),
}

# Rules that say more than is read; all others are exact up to the borders of the map.
COVERS = {
    "concatenate space",
    "flatten and back",
    "space transposed",
    "matmul over channels",
    "roll",
    "select",
    "different strides",
    "repeat",
    "product with a vector",
    "one row",
    "indexed by a tensor",
    "half of space",
    "split and merged",
    "running sum",
    "flip",
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_read_their_field(name):
    function, expected = PIECES[name]
    field = assert_covers(Lambda(function), torch.rand(2, 4, 8, 8), exact=name not in COVERS)
    assert str(field).replace(", stride 1×1", "") == expected


def test_tokens():
    block = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6))
    assert assert_covers(block, torch.rand(1, 5, 6), axes=(1,)).size == (1,)

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(5, 5)

        def forward(self, x):
            return x + self.mix(x.transpose(1, 2)).transpose(1, 2)

    assert assert_covers(Mixer(), torch.rand(1, 5, 6), axes=(1,)).is_global
