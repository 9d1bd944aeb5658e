"""Statistics are averages of what arrives, as found while asked for, and put back."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from pararealize import pararealize
from pararealize.calibration.norm_statistics import NormStatistics
from tests.models import SmallResNet


def test_renewed_shown_as_found_and_restored() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 8, 8)
    model = SmallResNet().eval()
    net = pararealize(model, 2, windows=2, example_inputs=x, coarse="linear").eval()
    statistics = NormStatistics(net)
    name = next(name for name in net.segments if name != "g1_1" and statistics.of(name))
    norm = statistics.of(name)[0]
    found = {key: value.clone() for key, value in net.state_dict().items()}
    seen = []
    handle = norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    assert statistics.renew([name], [partial(net.segments[name], net.stem(batch)) for batch in (x, x + 1)])
    handle.remove()
    means = torch.stack([value.mean((0, 2, 3)) for value in seen])
    torch.testing.assert_close(norm.running_mean, means.mean(0))
    changed = [key for key, value in net.state_dict().items() if not torch.equal(value, found[key])]
    assert len(changed) == 3 * len(statistics.of(name))
    assert not norm.training
    buffer = norm.running_mean
    with statistics.as_found():
        assert all(torch.equal(value, found[key]) for key, value in net.state_dict().items())
        torch.testing.assert_close(net.segments["g1_1"](net.stem(x)), net.segments["g1_1"](net.stem(x)))
    assert norm.running_mean is buffer
    torch.testing.assert_close(buffer, means.mean(0))
    statistics.renew(
        [name], [lambda: _in_the_midst(net, statistics, name, x)]
    )  # the original runs while others measure
    with statistics.as_found():
        assert all(torch.equal(value, found[key]) for key, value in net.state_dict().items())
    assert statistics.renewed == [name]
    statistics.restore([name])  # of two renewals the second is undone, and what was found is known as before
    torch.testing.assert_close(buffer, means.mean(0))
    assert norm.running_mean is buffer
    with statistics.as_found():
        assert all(torch.equal(value, found[key]) for key, value in net.state_dict().items())
    assert not NormStatistics(pararealize(torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4))), 2)).of("g1")


def test_the_first_renewal_is_undone_and_leaves_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 8, 8)
    net = pararealize(SmallResNet().eval(), 2, windows=2, example_inputs=x, coarse="linear").eval()
    found = {key: value.clone() for key, value in net.state_dict().items()}
    statistics = NormStatistics(net)
    name = next(name for name in net.segments if name != "g1_1" and statistics.of(name))
    statistics.renew([name], [lambda: net.segments[name](net.stem(x))])
    statistics.restore([name])
    assert all(torch.equal(value, found[key]) for key, value in net.state_dict().items())
    assert (statistics.renewed, statistics.has_originals) == ([], False)


def fail() -> None:
    raise KeyboardInterrupt


def test_a_renewal_that_fails_leaves_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 8, 8)
    net = pararealize(SmallResNet().eval(), 2, windows=2, example_inputs=x, coarse="linear").eval()
    found = {key: value.clone() for key, value in net.state_dict().items()}
    statistics = NormStatistics(net)
    with pytest.raises(KeyboardInterrupt):
        statistics.renew(["g1_2"], [lambda: net.segments["g1_2"](net.stem(x)), fail])
    assert not statistics.renew(["g1_2"], [lambda: statistics.of("g1_2")[0](torch.randn(1, 4, 1, 1))])
    assert all(torch.equal(value, found[key]) for key, value in net.state_dict().items())
    assert not statistics.has_originals


def test_statistics_follow_a_network_to_another_type() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 8, 8)
    net = pararealize(SmallResNet().eval(), 2, windows=2, example_inputs=x, coarse="linear").eval()
    first, true = NormStatistics(net), net.segments["g1_2"](net.stem(x))
    first.renew(["g1_2"], [lambda: net.segments["g1_2"](net.stem(x))])
    first.remember()
    net.double()
    for statistics in (first, NormStatistics(net)):  # which is open over the move, and which is made after it
        with statistics.as_found():
            torch.testing.assert_close(net.segments["g1_2"](net.stem(x.double())), true.double(), rtol=1e-5, atol=1e-5)


def test_statistics_from_before_are_remembered_while_the_renewed_ones_are_there() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 8, 8)
    net = pararealize(SmallResNet().eval(), 2, windows=2, example_inputs=x, coarse="linear").eval()
    found = {key: value.clone() for key, value in net.state_dict().items()}
    first = NormStatistics(net)
    name = next(name for name in net.segments if name != "g1_1" and first.of(name))
    first.renew([name], [lambda: net.segments[name](net.stem(x))])
    assert not NormStatistics(net).has_originals
    first.remember()
    again, twin = NormStatistics(net), copy.deepcopy(net)
    assert again.has_originals
    with again.as_found():
        assert all(torch.equal(value, found[key]) for key, value in net.state_dict().items())
    again.give_to(NormStatistics(twin))
    assert all(torch.equal(value, found[key]) for key, value in twin.state_dict().items())
    first.of(name)[0].running_mean.add_(1)  # trained on meanwhile: the old ones are nobody's any more
    assert first.of(name)[0] not in NormStatistics(net)._found


def _in_the_midst(net: torch.nn.Module, statistics: NormStatistics, name: str, x: torch.Tensor) -> None:
    with statistics.as_found():
        net.segments[name](net.stem(x))
    net.segments[name](net.stem(x))
