"""Samples tell batches apart, whatever their type and layout, and not the same batch on another processor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.distributed.watchdog.samples import about_the_same, sample, sample_text

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.complex64]


@settings(max_examples=20)
@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 10))
def test_equal_tensors_have_one_sample_and_others_another(dtype: torch.dtype, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(shape, generator=generator) * 20).to(dtype)
    text = sample(tensor)
    assert sample(tensor.clone()) == text
    assert sample(tensor if tensor.ndim == 0 else tensor.transpose(0, -1).contiguous().transpose(0, -1)) == text
    if tensor.numel():
        assert not about_the_same(text, sample(tensor + 3))
        assert sample_text(text) != sample_text(sample(tensor + 3))
    assert not about_the_same(text, sample(tensor.to(torch.complex128 if dtype is not torch.float32 else torch.int32)))


def test_views_with_flipped_signs_and_flags_can_be_read() -> None:
    numbers = torch.randn(3, dtype=torch.complex64)
    assert sample(numbers.conj()) == sample(numbers.conj().resolve_conj())
    assert sample(numbers.conj().imag) == sample(numbers.conj().imag.resolve_neg())
    assert sample(torch.tensor([True, False])) != sample(torch.tensor([True, True]))
    assert sample(torch.ones(2, requires_grad=True)) == sample(torch.ones(2))


def test_rounding_is_no_difference_and_whole_numbers_have_none() -> None:
    images = torch.randn(8, 3, 32, 32)
    assert about_the_same(sample(images), sample(images * (1 + 1e-6)))
    assert about_the_same(sample(images.bfloat16()), sample((images * (1 + 1e-6)).bfloat16()))
    assert not about_the_same(sample(images), sample(torch.randn(8, 3, 32, 32)))
    assert not about_the_same(sample(torch.full((4,), 10_000)), sample(torch.full((4,), 10_001)))
    nan = torch.tensor([torch.nan, 1.0, torch.inf])
    assert about_the_same(sample(nan), sample(nan * (1 + 1e-6)))
    assert not about_the_same(sample(nan), sample(torch.tensor([0.0, 1.0, torch.inf])))


@pytest.mark.parametrize("large", [1.7e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("columns", [1, 8, 14])
def test_large_numbers_hide_no_others(large: float, columns: int) -> None:
    """Each number is compared by its own size, whatever stands beside it."""
    batch, other = torch.randn(2, 4, 16).unbind()
    batch[:, :columns] = other[:, :columns] = large
    assert not about_the_same(sample(batch), sample(other))
    assert not about_the_same(sample(other), sample(batch))
    assert about_the_same(sample(batch), sample(batch * (1 - 1e-6)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_next_to_zero_have_the_rounding_of_others(dtype: torch.dtype) -> None:
    for i in range(64):
        batch = torch.randn(8, 8)
        batch.view(-1)[i] *= 1e-6  # of a mean that was subtracted
        noisy = batch + 1e-6 * torch.randn(8, 8)
        assert about_the_same(sample(batch.to(dtype)), sample(noisy.to(dtype)))


@pytest.mark.parametrize("shape", [(64, 512), (2, 3, 224, 224), (100_000,)])
def test_numbers_come_from_all_over_a_tensor(shape: tuple[int, ...]) -> None:
    places = torch.arange(int(torch.tensor(shape).prod())).reshape(shape)
    values = {int(text) for text in _numbers(sample(places))}
    assert len(values) == 32
    gaps = [b - a for a, b in zip(sorted(values), sorted(values)[1:], strict=False)]
    assert max(gaps) < places.numel() / 10


def _numbers(text: str) -> list[int]:
    return torch.frombuffer(bytearray.fromhex(text.partition(":")[2]), dtype=torch.int64).tolist()
