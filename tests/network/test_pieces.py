"""Pieces compute what the network computes, each by itself, and none changes what another one reads."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, fx, nn

from pararealize import pararealize
from pararealize.analysis.blocks import find_blocks
from pararealize.compiler import make_plan
from pararealize.errors import CoarseError, CutError
from pararealize.network.pieces import Pieces
from pararealize.plan.plan import Plan
from pararealize.tracing.front_end import capture
from tests.models import MaskedTransformer, Perceptron, SharedBias, SkipInPlace, SmallResNet


def pieces_of(model: nn.Module, *inputs: Tensor, n: int = 2, **options: object) -> tuple[Pieces, nn.Module]:
    """The pieces, and the root to run them over."""
    captured = capture(model, inputs)
    chain = find_blocks(captured)
    plan: Plan = make_plan(chain, n, coarse="linear", **options)  # type: ignore[arg-type]
    return Pieces(chain, plan), captured.graph_module


def run(root: nn.Module, graph: fx.Graph, *inputs: Tensor) -> tuple[Tensor, ...]:
    results = fx.GraphModule(root, graph)(*inputs)
    return results if isinstance(results, tuple) else (results,)


def in_sequence(pieces: Pieces, root: nn.Module, *inputs: Tensor) -> Tensor:
    """The original network out of its pieces, one after the other."""
    known = dict(zip(pieces.placeholders, inputs, strict=True))
    if pieces.computed:
        known |= dict(zip(pieces.computed, run(root, pieces.graphs["context"], *inputs), strict=True))
    z, *more = run(root, pieces.graphs["stem"], *inputs)
    known |= dict(zip(pieces.from_stem, more, strict=True))
    for j in range(1, pieces.plan.n + 1):
        (z,) = run(root, pieces.graphs[f"g{j}"], z, *(known[node] for node in pieces.reads[f"g{j}"]))
    (result,) = run(root, pieces.graphs["head"], z, *(known[node] for node in pieces.chain.head.context))
    return result


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    "model, inputs",
    [
        (SmallResNet(), [torch.randn(2, 3, 8, 8)]),
        (MaskedTransformer(), [torch.randint(0, 11, (2, 5))]),
        (SharedBias(), [torch.randn(2, 6)]),
        (Perceptron(), [torch.randn(2, 8)]),
    ],
)
def test_pieces_in_sequence_are_the_network(model: nn.Module, inputs: list[Tensor], n: int) -> None:
    model.eval()
    pieces, root = pieces_of(model, *inputs, n=n)
    assert list(pieces.graphs)[-1] == "head"
    root.eval()
    given = [value.clone() for value in inputs]
    assert torch.equal(in_sequence(pieces, root, *given), model(*inputs))
    assert not any(node.meta.keys() - {"region"} for graph in pieces.graphs.values() for node in graph.nodes)


def changed_inputs(pieces: Pieces, root: nn.Module) -> set[str]:
    """The pieces that change a value which they are given."""
    entering = {"stem": pieces.placeholders, "context": pieces.placeholders}
    for j, read in enumerate(pieces.reads.values(), 1):
        entering[f"g{j}"] = [pieces.chain.blocks[pieces.plan.segments[j - 1].first].input, *read]
    found = set()
    for name, nodes in entering.items():
        if name in pieces.graphs:
            given = [torch.randn(node.meta["val"].shape) for node in nodes]
            kept = [value.clone() for value in given]
            run(root, pieces.graphs[name], *given)
            found |= {name for a, b in zip(given, kept, strict=True) if not torch.equal(a, b)}
    return found


class InPlaceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu, self.linear = nn.ReLU(inplace=True), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.relu(x))


def test_an_interface_is_not_overwritten_in_place() -> None:
    """Behind an adapter the input is read again for the residual; in the first segment nobody else reads it."""
    model, x = nn.Sequential(nn.Linear(4, 4), *(InPlaceFirst() for _ in range(3))), torch.randn(2, 4)
    pieces, root = pieces_of(model, x, n=3, source="input")
    assert changed_inputs(pieces, root) == {"g1"}
    assert "clone" in str(pieces.graphs["g2"])
    from_stem, root = pieces_of(model, x, n=3, source="stem")
    assert changed_inputs(from_stem, root) == set(), "adapters read the stem's output too"
    alone, root = pieces_of(model, x, n=1, source="stem")
    assert changed_inputs(alone, root) == {"g1"}


class Scaled(nn.Module):
    """Changes its input in place, with a parameter: the state begins with that."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.linear = nn.Parameter(torch.full((4,), 2.0)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mul_(self.gain))


def test_the_raw_input_is_not_overwritten_where_adapters_read_it() -> None:
    for block in (Scaled, InPlaceFirst):
        model, x = nn.Sequential(*(block() for _ in range(3))), torch.randn(2, 4)
        pieces, root = pieces_of(model, x, n=3)
        assert (pieces.entry.op == "placeholder") == (block is Scaled)
        assert changed_inputs(pieces, root) == set()
        alone, root = pieces_of(model, x, n=1)
        assert changed_inputs(alone, root) == {"g1" if block is Scaled else "stem"}, "as the network itself does"


class Normalising(nn.Module):
    """Changes its input in the stem, a mask on the way, and reads a view of what it has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layers = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        doubled = mask + mask
        half = doubled[:, :]
        x = self.first(x.sub_(1))
        for layer in self.layers:
            x = x + torch.tanh(layer(x)) * half
            doubled.mul_(0.5)
        return x


@pytest.mark.parametrize("n", [2, 3])
def test_nothing_that_is_read_twice_is_overwritten(n: int) -> None:
    model, x, mask = Normalising(), torch.randn(2, 4), torch.rand(2, 4)
    pieces, root = pieces_of(model, x, mask, n=n, source="stem")
    assert changed_inputs(pieces, root) == set()
    assert torch.equal(in_sequence(pieces, root, x.clone(), mask), model(x.clone(), mask))


@pytest.mark.parametrize("n", [1, 2])
def test_a_head_leaves_its_context_as_it_is(n: int) -> None:
    """Over ranks it is a leaf, which autograd has no in-place operation for; calibration runs a head several times."""
    pieces, root = pieces_of(SkipInPlace(), torch.randn(2, 6), n=n)
    z, skip = torch.randn(2, 6), torch.randn(2, 6)
    kept = skip.clone()
    run(root, pieces.graphs["head"], z, skip)
    assert torch.equal(skip, kept)


def test_context_is_handed_out_before_it_changes() -> None:
    """The context piece makes all states of the mask; an early one is no view of the last."""
    pieces, root = pieces_of(Normalising(), torch.randn(2, 4), torch.rand(2, 4), n=3, source="stem")
    values = run(root, pieces.graphs["context"], torch.randn(2, 4), torch.ones(2, 4))
    states = {float(value.flatten()[0]) for value in values}
    assert {2.0, 1.0, 0.5} <= states


class Noisy(nn.Module):
    """Draws once and reads it everywhere, or draws anew in each layer."""

    def __init__(self, once: bool) -> None:
        super().__init__()
        self.layers, self.once = nn.ModuleList(nn.Linear(4, 4) for _ in range(4)), once

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand_like(x) if self.once else None
        for layer in self.layers:
            x = torch.tanh(layer(x) + (torch.rand_like(x) if noise is None else noise))
        return x


def test_random_numbers_are_drawn_by_one_piece() -> None:
    pieces, _ = pieces_of(Noisy(once=False), torch.randn(2, 4), n=3)
    assert sum(str(graph).count("rand_like](") for graph in pieces.graphs.values()) == 4
    with pytest.raises(CutError, match=r"random numbers are read by several parts.*rand_like in .*make them an input"):
        pieces_of(Noisy(once=True), torch.randn(2, 4), n=3)


class Asking(nn.Module):
    """A block that does another thing where its input requires a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.linear(x))
        return h * 1.5 if x.requires_grad else h


class Switched(nn.Module):
    """Blocks for which gradients are switched on, whatever they are outside."""

    def __init__(self, block: type[nn.Module], enabled: bool) -> None:
        super().__init__()
        self.blocks, self.enabled = nn.ModuleList(block() for _ in range(3)), enabled

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad() if self.enabled else contextlib.nullcontext():
            for block in self.blocks:
                x = block(x)
        return x


def test_what_asks_for_gradients_that_are_switched_on_is_one_segment() -> None:
    """Called under no_grad, the model's values require one there; a correction's do not."""
    x = torch.randn(2, 4)
    with pytest.raises(CutError, match=r"blocks\.0, blocks\.1, blocks\.2 asks whether its input requires a gradient"):
        pieces_of(Switched(Asking, enabled=True), x, n=2)
    pieces_of(Switched(Asking, enabled=True), x, n=1)
    pieces_of(Switched(lambda: nn.Linear(4, 4), enabled=True), x, n=2)  # type: ignore[arg-type]
    model = Switched(Asking, enabled=False)
    net = pararealize(model, n=2, example_inputs=x)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            assert torch.equal(net.iterate(x, 1), model(x))


class Clipped(nn.Linear):
    """A layer that keeps its weights small."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.clamp_(-1, 1)
        return x + super().forward(x)


def test_a_segment_that_changes_its_own_parameters_is_not_run_twice() -> None:
    """Autograd told of a variable "modified by an inplace operation", at the first step of training."""
    model, x = nn.Sequential(*(Clipped(4, 4) for _ in range(4))), torch.randn(2, 4)
    with pytest.raises(CoarseError, match=r"F1 is segment 2 itself.* 3 writes into its own parameters"):
        pararealize(model, n=2, example_inputs=x, coarse="exact")
    pararealize(model, n=2, example_inputs=x, coarse="block")(x).sum().backward()


def test_a_segment_that_only_counts_its_calls_may_run_twice() -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return x + super().forward(x)

    model, x = nn.Sequential(*(Counting() for _ in range(4))), torch.randn(2, 4)
    net = pararealize(model, n=2, example_inputs=x, coarse="exact")
    assert all(int(layer.calls) == 0 for layer in (model[0], net.get_submodule("0")))
    net(x).sum().backward()


def test_what_raises_otherwise_in_the_trial_says_nothing_of_gradients() -> None:
    class Wary(Clipped):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            if x.is_leaf and x.requires_grad:
                raise ValueError("an input of the user's own")
            return y

    model, x = nn.Sequential(nn.Linear(4, 4), *(Wary(4, 4) for _ in range(4))), torch.randn(2, 4)
    pararealize(model, n=2, example_inputs=x, coarse="exact")
