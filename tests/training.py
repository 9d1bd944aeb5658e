"""A data set and a network small enough to be trained in a test; its steps draw random numbers and move statistics."""

from __future__ import annotations

import torch
from torch import nn

from pararealize import pararealize
from pararealize.data.dataset import Dataset

WIDTH, CLASSES = 8, 3


def samples(batch_size=8, train=40, test=13, seed=0) -> Dataset:
    """Points around three centres."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(train + test) % CLASSES
    x = torch.randn(train + test, WIDTH, generator=generator) + 2 * torch.eye(WIDTH)[labels]
    return Dataset(
        name="centres",
        classes=CLASSES,
        batch_size=batch_size,
        seed=seed,
        images=x[:train],
        labels=labels[:train],
        test_images=x[train:],
        test_labels=labels[train:],
    )


def chain(depth=6, dropout=0.1, norm=nn.BatchNorm1d) -> nn.Sequential:
    """Linear layers with batch norms and dropout; from points to logits."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(WIDTH, WIDTH), norm(WIDTH), nn.Tanh(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def network(n=3, dropout=0.1, norm=nn.BatchNorm1d, **options):
    """The same, converted."""
    arguments = {"coarse": "linear", "example_inputs": torch.zeros(2, WIDTH), **options}
    return pararealize(chain(dropout=dropout, norm=norm), n, **arguments)


def same(a, b) -> bool:
    """Whether two state dicts are equal to the bit."""
    a, b = a.state_dict() if isinstance(a, nn.Module) else a, b.state_dict() if isinstance(b, nn.Module) else b
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
