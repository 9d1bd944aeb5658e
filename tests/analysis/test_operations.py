"""Operations one by one: their sums are torch's own counts, and what grows with the batch does so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.cost import count_costs
from pararealize.analysis.operations import list_chain_operations, list_module_operations
from pararealize.analysis.space import Space
from pararealize.models import resnet20
from pararealize.tracing.front_end import capture


def chain_of(batch: int):
    with torch.device("meta"):
        return find_blocks(capture(resnet20(), torch.empty(batch, 3, 32, 32, device="meta"), check=False))


@pytest.fixture(scope="module")
def listed():
    return [(chain := chain_of(batch), list_chain_operations(chain)) for batch in (2, 6)]


def test_flops_are_those_that_torch_counts(listed):
    chain, operations = listed[0]
    costs = count_costs(chain)
    for cost, part in zip((costs.stem, *costs.blocks, costs.head), operations.parts, strict=True):
        assert sum(one.flops for one in part.forward) == pytest.approx(cost.flops_forward)
        assert sum(one.flops for one in part.backward) == pytest.approx(cost.flops_backward)
        assert part.bytes_parameters >= cost.bytes_parameters == part.bytes_gradients
    assert not operations.notes


def test_one_count_serves_all_batch_sizes(listed):
    """Recorded with 2 and with 6 samples, every operation has the same bytes a sample, and the same fixed ones."""
    (_, few), (_, many) = listed
    for a, b in zip(few.parts, many.parts, strict=True):
        assert a.bytes_saved == pytest.approx(b.bytes_saved, rel=1e-2)  # statistics of batch norm are not of a sample
        for x, y in zip((*a.forward, *a.backward), (*b.forward, *b.backward), strict=True):
            assert (x.flops, x.bytes_fixed, x.kernels, x.kind) == (y.flops, y.bytes_fixed, y.kernels, y.kind)
            assert x.bytes_sample == pytest.approx(y.bytes_sample, rel=1e-2, abs=4096)


def test_interchangeable_blocks_are_listed_once(listed):
    _, operations = listed[0]
    assert operations.blocks[1] is operations.blocks[2]


def test_by_hand():
    space = Space(shape=(8,), channel=0)
    part = list_module_operations(nn.Linear(8, 4), space)
    [product] = part.forward
    assert (product.flops, product.bytes_sample, product.bytes_fixed) == (64, 4 * (8 + 4), 4 * (4 * 8 + 4))
    assert (product.kernels, product.kind) == (1, "float32")
    assert part.bytes_saved == 4 * 8
    assert sum(one.flops for one in part.backward) == 2 * 64
    assert sum(one.bytes_fixed for one in part.backward) >= 4 * (2 * 32 + 4)  # the weight, its gradient, the bias's


def test_views_launch_nothing_and_convolutions_are_tf32():
    flat = list_module_operations(nn.Flatten(), Space(shape=(2, 3), channel=0))
    assert flat.forward == ()
    convolution = list_module_operations(nn.Conv1d(2, 2, 3), Space(shape=(2, 8), channel=0))
    assert [one.kind for one in convolution.forward] == ["tf32"]
    assert [one.kernels for one in convolution.backward] == [2]
    half = list_module_operations(nn.Linear(2, 2).half(), Space(shape=(2,), channel=0, dtype="float16"))
    assert {one.kind for one in half.forward} == {"float16"}


def test_blocks_that_do_not_run_on_fakes_are_estimated(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no kernel")

    monkeypatch.setattr("pararealize.analysis.operations._listed", refuse)
    operations = list_chain_operations(chain_of(2))
    assert operations.notes[0].startswith("stage1.0 cannot be counted (no kernel); taken as 2 operations a parameter")
    assert operations.blocks[0].forward[0].flops == 2 * 4672
