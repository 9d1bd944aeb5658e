"""Closed forms: against torch.linalg on the rows themselves, against maps that are known, and against one another."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pararealize.calibration import channel_maps
from pararealize.calibration.channel_maps import ChannelMap, Moments, Regressions
from pararealize.errors import CalibrationError

CPU = torch.device("cpu")


def rows(count: int, groups: int, channels: int, seed: int = 0) -> list[Tensor]:
    """Groups of features of very different sizes, off centre."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [10.0**-i for i in range(groups)]
    return [s * (1 + torch.randn(count, channels, generator=generator, dtype=torch.float64)) for s in sizes]


def moments(features: list[Tensor], target: Tensor) -> Moments:
    sums = Moments(len(features), target.shape[1], CPU)
    half = len(target) // 2
    for part in (slice(half), slice(half, None)):
        sums.add([feature[part] for feature in features], target[part], target[part])
    return sums


def applied(found: ChannelMap, features: list[Tensor]) -> Tensor:
    """What the map makes of features."""
    if found.kind == "scale":
        return found.bias + sum(f * gain for f, gain in zip(features, found.reads, strict=True))
    inner = sum(f @ reads for f, reads in zip(features, found.reads, strict=True))
    return found.bias + (inner if found.gives is None else inner @ found.gives)


def all_of(regressions: Regressions, channels: int) -> dict[str, ChannelMap]:
    maps = {"scale": regressions.scale(), "dense": regressions.dense()}
    return maps | {f"rank {r}": regressions.low_rank(r) for r in range(channels + 1)}


def test_errors_are_those_of_the_maps_on_the_rows_held_out() -> None:
    features, held = rows(60, 3, 4), rows(30, 3, 4, seed=1)
    generator = torch.Generator().manual_seed(2)
    target, held_target = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (60, 30))
    regressions = Regressions(moments(features, target), moments(held, held_target))
    for name, found in all_of(regressions, 4).items():
        error = (applied(found, held) - held_target).square().sum().item()
        assert found.error == pytest.approx(error, rel=1e-8), name
        error = (applied(found, features) - target).square().sum().item()
        assert found.error_fitted == pytest.approx(error, rel=1e-8), name
    assert regressions.held_out.nothing == pytest.approx(held_target.square().sum().item())


def test_ridge_is_the_solution_of_its_equations() -> None:
    features = rows(50, 1, 5)
    target = torch.randn(50, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sums = moments(features, target)
    found = Regressions(sums, sums, (0.1,)).dense()
    z, t = (value - value.mean(0) for value in (features[0], target))
    penalty = 0.1 * z.square().sum(0).mean()
    wanted = torch.linalg.solve(z.T @ z + penalty * torch.eye(5, dtype=torch.float64), z.T @ t)
    torch.testing.assert_close(found.reads[0], wanted)
    torch.testing.assert_close(found.bias, target.mean(0) - features[0].mean(0) @ wanted)


@pytest.mark.parametrize("kind", ["scale", "low-rank", "dense"])
def test_maps_that_are_there_are_found(kind: str) -> None:
    features, held = rows(200, 2, 6), rows(50, 2, 6, seed=1)
    generator = torch.Generator().manual_seed(3)
    maps = [torch.randn(6, 6, generator=generator, dtype=torch.float64) for _ in features]
    if kind == "scale":
        maps = [torch.diag(one.diagonal()) for one in maps]
    if kind == "low-rank":
        gives = torch.randn(2, 6, generator=generator, dtype=torch.float64)
        maps = [one[:, :2] @ gives for one in maps]

    def true(some: list[Tensor]) -> Tensor:
        return 3 + sum(f @ one for f, one in zip(some, maps, strict=True))

    regressions = Regressions(moments(features, true(features)), moments(held, true(held)))
    found = {"scale": regressions.scale, "low-rank": lambda: regressions.low_rank(2), "dense": regressions.dense}[
        kind
    ]()
    torch.testing.assert_close(applied(found, held), true(held), rtol=1e-6, atol=1e-6)
    if kind == "low-rank":
        assert found.rank == 2
        assert regressions.low_rank_error(2) == found.error
        assert regressions.low_rank(1).error > 1e-2 * true(held).square().sum()


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(2, 40), st.integers(0, 10**6))
def test_more_freedom_fits_better(groups: int, channels: int, count: int, seed: int) -> None:
    """On the rows fitted to and without a penalty; the best map of a rank is no worse than that of a smaller one."""
    features = rows(count, groups, channels, seed)
    target = torch.randn(count, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sums = moments(features, target)
    maps = all_of(Regressions(sums, sums, (0.0,)), channels)
    whole = sums.nothing
    errors = [maps[f"rank {r}"].error for r in range(channels + 1)]
    assert all(a >= b for a, b in pairwise(errors))
    assert errors[-1] == pytest.approx(maps["dense"].error, abs=1e-8 * whole)
    assert maps["dense"].error <= maps["scale"].error + 1e-8 * whole <= whole * (1 + 2e-8)


def test_chunks_and_features_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    features = [*rows(40, 1, 3), torch.zeros(40, 3)]
    target = 2 * features[0]
    found = []
    for chunk in (1, 1 << 22):
        monkeypatch.setattr(channel_maps, "CHUNK", chunk)
        sums = moments(features, target)
        found.append(Regressions(sums, sums).dense().reads)
    torch.testing.assert_close(*found)
    assert found[0].isfinite().all()
    assert not found[0][1].any()


def test_no_rows_are_refused() -> None:
    """Masks that exclude every position leave none; LAPACK would fail on a matrix of NaN."""
    none, some = moments([torch.zeros(0, 3)], torch.zeros(0, 3)), moments(rows(4, 1, 3), torch.zeros(4, 3))
    with pytest.raises(CalibrationError, match="no rows to fit a correction to"):
        Regressions(none, some)
