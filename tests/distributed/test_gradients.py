"""Buckets of gradients, and what is averaged when; over real ranks see ``test_step.py`` and ``test_stage.py``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pararealize.distributed.gradients import Bucket, TiedSum, make_buckets


def parameters(*shapes, dtype=torch.float64):
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]


def test_a_bucket_gives_back_what_was_put_in() -> None:
    used, unused, sparse, elsewhere = parameters((2, 3), (4,), (5, 2), (3,))
    used.grad = torch.randn(3, 2, dtype=torch.float64).T  # not contiguous
    sparse.grad = torch.randn(5, 2, dtype=torch.float64).to_sparse()
    expected = [used.grad.clone(), None, sparse.grad.to_dense(), torch.ones(3, dtype=torch.float64)]
    bucket = Bucket([used, unused, sparse, elsewhere])
    flat = bucket.pack()
    other = torch.zeros_like(flat)  # of a rank that used only the last parameter
    other[-1], other[-7:-4] = 1, 1
    bucket.unpack(flat + other)
    for parameter, gradient in zip(bucket.parameters, expected, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


def test_buckets_hold_one_type_and_about_that_many_bytes() -> None:
    found = parameters((4,), (4,), (2,)) + parameters((2,), dtype=torch.float32) + parameters((9,), (1,))
    made = make_buckets(found, 64)
    assert [[p.numel() for p in bucket.parameters] for bucket in made] == [[4, 4], [2, 9], [2], [1]]
    assert sorted(id(p) for bucket in made for p in bucket.parameters) == sorted(map(id, found))


def test_a_sum_is_not_summed_again() -> None:
    (weight,) = parameters((3,))
    twin = torch.full((4,), 2.0, dtype=torch.float64)  # the other rank's gradient, always 2, and that it has one
    twin[-1] = 1
    tied = TiedSum({(0, 1): [weight]}, lambda tensor, ranks: [tensor, twin + torch.cat([held, torch.zeros(1)])])
    held = torch.zeros(3, dtype=torch.float64)
    for step in range(1, 4):
        tied.begin()
        held = torch.zeros(3, dtype=torch.float64) if weight.grad is None else weight.grad.clone()
        weight.grad = torch.ones(3, dtype=torch.float64) + (0 if weight.grad is None else weight.grad)
        tied.finish()
        assert torch.equal(weight.grad, torch.full((3,), 3.0 * step, dtype=torch.float64))


def test_packing_copies_nothing_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blocking copy within backward holds up the host, which has the next kernels to issue."""
    used, unused = parameters((2, 3), (4,))
    used.grad = torch.ones(2, 3, dtype=torch.float64)
    bucket = Bucket([used, unused])
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("a number of the host"))
    flat = bucket.pack()
    flags = bucket._flags
    assert flat.tolist() == [1.0] * 6 + [0.0] * 4 + [1.0, 0.0]
    unused.grad = torch.full((4,), 2.0, dtype=torch.float64)
    assert bucket.pack().tolist() == [1.0] * 6 + [2.0] * 4 + [1.0, 1.0]
    assert bucket._flags is flags
