"""Fingerprints: of a network's structure, and of nothing else."""

import torch
from torch import nn

from pararealize.analysis.blocks import find_blocks
from pararealize.plan.fingerprints import fingerprint
from pararealize.tracing.front_end import capture


def chain_of(model: nn.Module, x: torch.Tensor):
    return find_blocks(capture(model, x, check=False))


def test_fingerprints_depend_on_structure_and_not_on_weights_or_the_batch():
    def linear(out=4):
        return nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, out))

    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    again = fingerprint(chain_of(linear(), torch.randn(7, 4)))
    assert fingerprint(chain_of(layers, torch.randn(2, 4))) == again
    assert len(again) == 16
    assert int(again, 16) >= 0
    assert fingerprint(chain_of(linear(5), torch.randn(2, 4))) != again
    assert fingerprint(chain_of(nn.Sequential(linear()), torch.randn(2, 4))) != again, "other names"
