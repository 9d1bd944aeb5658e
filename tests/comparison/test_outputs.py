"""Agreement of outputs: sums over batches are those of all samples at once, labels and masks count as they should."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pararealize.comparison.outputs import OutputSums, compared_tensors
from pararealize.errors import ExampleError


@settings(max_examples=20)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(2, 4), st.integers(0, 1 << 20))
def test_batches_add_up(sizes, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    y, other = torch.randn(2, sum(sizes), classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (sum(sizes),), generator=generator)
    sums = OutputSums()
    for a, b, c in zip(y.split(sizes), other.split(sizes), labels.split(sizes), strict=True):
        sums.add(a, {"loss": torch.tensor(0.0), "logits": b}, labels=c)
    assert sums.samples == len(y)
    assert sums.relative_error == pytest.approx(float((other - y).norm() / y.norm()))
    assert sums.cosine == pytest.approx(float(functional.cosine_similarity(y, other).mean()))
    assert sums.same_class == pytest.approx(float((y.argmax(1) == other.argmax(1)).double().mean()))
    for which, logits in enumerate((y, other)):
        quality = sums.quality(which)
        assert quality.accuracy == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
        assert quality.loss == pytest.approx(float(functional.cross_entropy(logits, labels)))


def test_what_is_no_classification_is_not_reported_as_one():
    """Neither an embedding, nor labels that do not fit, nor one number; unless the user says so."""
    y = torch.randn(4, 3)
    for labels, logits in ((None, None), (torch.tensor([0, 1, 2, 3]), None), (torch.zeros(4, dtype=torch.long), False)):
        sums = OutputSums(logits=logits)
        sums.add(y, y, labels=labels)
        assert sums.same_class is sums.quality(0) is None
    single = OutputSums()
    single.add(y[:, :1], y[:, :1], labels=torch.zeros(4, dtype=torch.long))
    assert single.same_class is None
    said = OutputSums(logits=True)
    said.add(y, y)
    assert (said.same_class, said.quality(0)) == (1.0, None)


def test_positions_that_a_mask_excludes_count_nowhere():
    y, other = torch.randn(2, 2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    changed = other.clone()
    changed[~mask] = math.nan
    sums = OutputSums(logits=True)
    sums.add(y, changed, mask=mask)
    assert sums.relative_error == pytest.approx(float((other - y)[mask].norm() / y[mask].norm()), rel=1e-5)
    assert math.isfinite(sums.cosine)
    assert sums.samples == 2


def test_padding_of_numbers_a_position_counts_nowhere():
    """``(batch, length)``, as scores of where an answer starts; a vector of the same shape counts whole."""
    y, other = torch.randn(2, 2, 3)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    results = []
    for padding in (0.0, 1e6):
        sums, whole = OutputSums(logits=True), OutputSums()
        sums.kind = dataclasses.replace(sums.kind, by_position=frozenset({("start",)}))
        pair = [{"start": torch.where(mask, y, padding)}, {"start": torch.where(mask, other, 2 * padding)}]
        sums.add(*pair, mask=mask)
        whole.add(*pair, mask=mask)
        results.append((sums.relative_error, sums.cosine, sums.same_class))
        assert (whole.relative_error == sums.relative_error) == (not padding)
    assert results[0] == results[1]
    assert results[0][0] == pytest.approx(float((other - y)[mask].norm() / y[mask].norm()), rel=1e-5)


def test_classes_of_maps_are_channels():
    y, other = torch.randn(2, 4, 3, 5, 5)
    sums = OutputSums(logits=True)
    sums.add(y, other)
    assert sums.same_class == pytest.approx(float((y.argmax(1) == other.argmax(1)).double().mean()))
    assert sums.relative_error == pytest.approx(float((other - y).norm() / y.norm()), rel=1e-5)


def test_errors_are_of_all_tensors_and_cosines_of_the_main_one():
    """Of ``(first, y)`` the first alone was compared: no error where y had one."""
    y, other = torch.randn(2, 4, 3)
    z = torch.randn(4, 2, dtype=torch.complex64)
    sums = OutputSums()
    sums.add(
        (torch.tensor(2.0), y, y, z, torch.ones(4).long()), (torch.tensor(1.0), y, other, 1j * z, torch.ones(3).long())
    )
    wanted = (1 + (other - y).square().sum() + 2 * z.abs().square().sum()).sqrt()
    whole = (4 + 2 * y.square().sum() + z.abs().square().sum()).sqrt()
    assert sums.relative_error == pytest.approx(float(wanted / whole))
    assert (sums.samples, sums.cosine) == (4, pytest.approx(1))
    number = OutputSums(logits=True)
    number.add(torch.tensor(2.0), torch.tensor(1.0), samples=4)
    assert (number.relative_error, number.samples, number.same_class) == (0.5, 4, None)
    assert math.isnan(number.cosine)


def test_pairs_of_real_numbers_are_no_classes():
    z, labels = torch.randn(4, dtype=torch.complex64), torch.tensor([0, 1, 1, 0])
    for logits in (None, True):
        sums = OutputSums(logits=logits)
        sums.add(z, z, labels=labels)
        assert sums.same_class is None


def test_what_cannot_be_compared():
    for nothing in ([torch.tensor(1)], {"loss": torch.tensor(1.0)}):
        with pytest.raises(ExampleError, match="without a floating-point or complex tensor but a loss"):
            compared_tensors(nothing)
    masked = OutputSums()
    masked.add(torch.ones(2, 3, 4), torch.ones(2, 3, 4), mask=torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ExampleError, match="nothing is compared: the masks leave out every position"):
        _ = masked.relative_error
    with pytest.raises(ExampleError, match=r"the original gives \(2, 3\) and the network \(2, 4\)"):
        OutputSums().add(torch.zeros(2, 3), torch.zeros(2, 4))
    zeros = OutputSums()
    zeros.add(torch.zeros(2, 3), torch.ones(2, 3))
    assert zeros.relative_error == math.inf
