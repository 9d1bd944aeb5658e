"""Linear maps of channels beside segments and adapters: nought at first, then what their formulas say."""

import pytest
import torch

from pararealize.analysis.space import Space
from pararealize.coarse.kinds import coarse_name, is_summed, kind_for
from pararealize.coarse.output_correction import (
    MAPS,
    InputCorrection,
    build_correction,
    build_input_correction,
    correction_cost,
    correction_kind,
    correction_parameters,
    correction_rank,
)
from pararealize.errors import CoarseError

SPACES = {
    "image": Space(shape=(12, 5, 4), channel=0),
    "volume": Space(shape=(12, 2, 3, 2), channel=0),
    "tokens": Space(shape=(7, 12), channel=1),
    "vector": Space(shape=(12,), channel=0),
    "double": Space(shape=(3, 4, 12), channel=2, dtype="float64"),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("differs, reads_x", [(True, True), (True, False), (False, False)])
def test_nought_at_first_then_the_formula(space: Space, kind: str, differs: bool, reads_x: bool) -> None:
    rank = correction_rank(kind, 3, space)
    module = build_correction(kind, rank, space, differs=differs, reads_x=reads_x, seed=1, name="K1")
    x, y = (torch.randn(2, *space.shape).to(space.torch_dtype) for _ in range(2))
    assert torch.equal(module(x, y), y)
    counted = correction_parameters(kind, rank, space, differs=differs, reads_x=reads_x)
    assert counted == sum(p.numel() for p in module.parameters())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    feature = (y - x if differs else y).movedim(space.channel + 1, -1)
    if kind == "scale":
        added = (
            feature * module.gain + module.bias + (x.movedim(space.channel + 1, -1) * module.gain_x if reads_x else 0)
        )
    else:
        flat = module.reads_d.weight.flatten(1)
        added = feature @ flat.T
        if reads_x:
            added = added + x.movedim(space.channel + 1, -1) @ module.reads_x.weight.flatten(1).T
        if kind == "dense":
            added = added + module.reads_d.bias
        else:
            added = added @ module.gives.weight.flatten(1).T + module.gives.bias
    expected = y + added.movedim(-1, space.channel + 1)
    torch.testing.assert_close(module(x, y), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", MAPS)
def test_an_adapter_that_is_the_identity_at_first(kind: str) -> None:
    space = SPACES["tokens"]
    module = build_input_correction(kind, correction_rank(kind, 2, space), space, seed=0, name="C2_2")
    w = torch.randn(2, *space.shape)
    assert type(module) is InputCorrection
    assert torch.equal(module(w), w)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    assert not torch.allclose(module(w), w)
    assert not torch.allclose(module(w)[:, 0], module(w.flip(1))[:, 0])  # positions are mapped one by one
    torch.testing.assert_close(module(w)[:, 0], module(w[:, :1])[:, 0])


def test_costs_and_ranks() -> None:
    space = SPACES["tokens"]  # 7 positions, 12 channels
    low = correction_cost("low-rank", 3, space, differs=True, reads_x=True)
    assert low.flops_forward == 2 * 7 * 12 * (3 + 3 + 3)
    assert correction_cost("dense", 0, space, differs=True, reads_x=False).flops_forward == 2 * 7 * 12 * 12
    assert correction_cost("scale", 0, space, differs=True, reads_x=False).flops_forward == 0
    assert low.flops_backward == 2 * low.flops_forward
    wide = Space(shape=(9, 384), channel=1)
    assert [correction_rank("low-rank", r, wide) for r in (0, 16, 999)] == [48, 16, 384]
    assert correction_rank("low-rank", 0, space) == 8
    assert correction_rank("dense", 0, wide) == 0
    free = correction_cost("folded", 0, space, differs=False, reads_x=False)
    assert (free.flops_forward, free.elements_forward) == (0, 0)
    assert correction_parameters("folded", 0, space, differs=False, reads_x=False) == 0


def test_names() -> None:
    request = correction_kind("low-rank:16")
    assert request is not None
    assert (request.kind, request.rank) == ("low-rank", 16)
    assert [correction_kind(name) for name in ("linear", None, "low-ranks")] == [None] * 3
    assert coarse_name("low-rank:16") == "low-rank:16"
    named = {name: correction_kind(name) for name in ("low-rank:16", "scale", "folded", "folded:4")}
    adapters = {name: request and request.of_adapters for name, request in named.items()}
    assert adapters == {
        "low-rank:16": ("low-rank", 16),
        "scale": ("scale", 0),
        "folded": None,
        "folded:4": ("low-rank", 4),
    }
    assert is_summed("dense")
    assert not is_summed("paper")
    space = SPACES["tokens"]
    assert kind_for("low-rank", space, space) == ("linear", "")
    for wrong in ("scale:3", "low-rank:0", "folded:0"):
        with pytest.raises(CoarseError, match='only "low-rank" and "folded" have a rank'):
            coarse_name(wrong)
    with pytest.raises(CoarseError, match="did you mean 'low-rank'"):
        coarse_name("lowrank")
