"""Receptive fields of blocks and runs of them: composition, axes, and operations without a rule."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from pararealize.analysis.fields.field import Fields, ReceptiveField
from pararealize.errors import CutError, FieldError
from tests.field_oracle import Lambda, field_of

kernels = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 3))


def test_a_change_of_axes_is_global():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2))
    field = field_of(module, torch.rand(2, 3, 8, 8), (2, 3), (2,))
    assert field == ReceptiveField.everywhere(2)
    assert field.then(ReceptiveField.everywhere(1)).size == (None, None)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(kernels, kernels), min_size=3, max_size=3))
def test_composition_is_associative_and_agrees_with_the_whole(layers):
    convs = [
        nn.Conv2d(1, 1, (k, h), stride=(s, t), padding=(p, q), dilation=(d, e)) for (k, s, p, d), (h, t, q, e) in layers
    ]
    x = torch.rand(1, 1, 120, 120)
    inputs = list(itertools.accumulate(convs[:-1], lambda value, conv: conv(value).detach(), initial=x))
    f, g, h = (field_of(conv, value) for conv, value in zip(convs, inputs, strict=True))
    assert f.then(g).then(h) == f.then(g.then(h)) == field_of(nn.Sequential(*convs), x)


def test_the_theory_of_a_stack():
    """Four of the paper's units, two 3×3 convolutions each, the first with stride 2, see 31×31 pixels (Lee et al.)."""
    units = [nn.Conv2d(1, 1, 3, stride=1 + (i == 0), padding=1) for i in range(8)]
    field = field_of(nn.Sequential(*units), torch.rand(1, 1, 32, 32))
    assert field.size == (31, 31)
    assert field.within((16, 64)) == (16, 31)


def test_fields_of_runs_and_late_errors():
    conv = ReceptiveField(size=(3, 3), stride=(1, 1), start=(-1, -1))
    fields = Fields(names=("a", "b", "c"), blocks=(conv, FieldError("no rule"), conv))
    assert fields.of(0, 0) == conv
    with pytest.raises(FieldError, match="no rule"):
        fields.of(0, 2)
    with pytest.raises(CutError, match="0 to 2"):
        fields.of(1, 3)
    assert "b: no rule" in str(fields)


class Shift(nn.Module):
    def forward(self, x):
        return torch.renorm(x, 2, 0, 1.0)


def test_unknown_operations_stop_and_name_the_remedy():
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(Shift()))
    with pytest.raises(FieldError) as raised:
        field_of(net, torch.rand(2, 3, 8, 8))
    assert str(raised.value) == (
        "no receptive-field rule for torch.renorm (node 1.0); pass leaf_modules=[Shift] to treat it as global"
    )
    with pytest.raises(FieldError, match=r"torch.nn.CrossMapLRN2d \(node norm\); pass leaf_modules=\[CrossMapLRN2d\]"):
        field_of(Named(nn.CrossMapLRN2d(2)), torch.rand(2, 3, 8, 8))
    assert field_of(Named(nn.CrossMapLRN2d(2)), torch.rand(2, 3, 8, 8), opaque=("norm",)).is_global


class Named(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x)


def test_arguments_that_are_not_numbers_stop_too():
    class Dynamic(nn.Module):
        def forward(self, x):
            return F.pad(x, x.shape[2:])

    with pytest.raises(FieldError, match="its rule cannot read these arguments"):
        field_of(Dynamic(), torch.rand(2, 3, 8, 8))


def written(x, y):
    z = x + 0
    z[:, :2] = y[:, :2]
    return z


fx.wrap("written")


def test_a_function_of_the_users_own_has_no_rule():
    with pytest.raises(FieldError, match=r"no receptive-field rule for written\(\)"):
        field_of(Lambda(lambda m, x: written(x, m.conv(x))), torch.rand(2, 4, 8, 8))
