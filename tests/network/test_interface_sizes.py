"""What adapters and coarse blocks give at other sizes is compared with what the network has there, before it runs."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pararealize import pararealize
from pararealize.errors import GuardError, RecordingWarning


class Strided(nn.Module):
    """Maps that shrink without padding, or with it, so that halving them need not end where the network does."""

    def __init__(self, paddings: tuple[int, ...] = (0, 1)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        settings = [(1, 1), *((2, padding) for padding in paddings), (1, 1)]
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, stride=s, padding=p) for s, p in settings)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x.mean((2, 3)))


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1]), min_size=1, max_size=2),
    st.sampled_from(["linear", "paper", "bottleneck"]),
    st.lists(st.tuples(st.integers(9, 40), st.integers(9, 40)), min_size=2, max_size=3),
)
def test_every_image_size_is_right(paddings: list[int], coarse: str, sizes: list[tuple[int, int]]) -> None:
    model = Strided(tuple(paddings)).eval()
    net = pararealize(model, n=3, example_inputs=torch.randn(2, 3, 16, 16), coarse=coarse, cuts="paper")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecordingWarning)
        for size in sizes:
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(net.iterate(x, 2), model(x))
            assert net(x).shape == model(x).shape


def test_what_cannot_follow_is_named_with_its_shapes() -> None:
    def fixed(segment: nn.Module, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> nn.Module:
        class Fixed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(y_shape))

            def forward(self, r: Tensor) -> Tensor:
                return r.mean((2, 3), keepdim=True) * self.weight

        return Fixed()

    net = pararealize(Strided((1,)), n=2, example_inputs=torch.randn(2, 3, 16, 16), coarse=fixed, cuts="paper")
    net(torch.randn(5, 3, 16, 16))
    with pytest.raises(GuardError, match=r"F1 gives \(2, 4, \d+, \d+\), not \(2, 4, \d+, \d+\).*F1 gives"):
        net(torch.randn(2, 3, 24, 24))


class Attention(nn.Module):
    """Attention that adds up scores, (batch, tokens, tokens), beside its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        scores = scores if before is None else scores + before
        return x + self.out(scores.softmax(-1) @ x), scores


class Scores(nn.Module):
    """Where tokens are embedded, scores are no interface; where they are not, the first ones are one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Identity() if channels == 8 else nn.Linear(channels, 8)
        self.layers = nn.ModuleList(Attention() for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x, scores = self.embed(x), None
        for layer in self.layers:
            x, scores = layer(x, scores)
        return x


@pytest.mark.parametrize("coarse", ["linear", "exact"])
@pytest.mark.parametrize("channels, length", [(8, 6), (8, 8), (8, 2), (3, 6), (3, 8)])
def test_scores_that_are_handed_on_follow_the_length_or_are_refused(channels: int, length: int, coarse: str) -> None:
    """With scores as an interface, an adapter has a weight for each token, and another length was torch's error."""
    torch.manual_seed(0)
    model = Scores(channels).eval()
    net = pararealize(model, n=2, example_inputs=torch.randn(2, length, channels), coarse=coarse)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecordingWarning)
        for batch, other in ((2, length), (3, length), (2, length + 3), (3, 5), (1, 1)):
            x = torch.randn(batch, other, channels)
            if channels == 8 and other != length:
                with pytest.raises(GuardError, match=r"C2 (gives|does not take)"):
                    net(x)
                with pytest.raises(GuardError):
                    net.iterate(x, 1)
                continue
            assert net(x).shape == (*x.shape[:2], 8)
            torch.testing.assert_close(net.iterate(x, 1), model(x))
