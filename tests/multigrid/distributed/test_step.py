"""What one rank's step keeps and gives back; over several ranks see ``test_stage.py``."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from pararealize import layer_parallel
from pararealize.errors import PararealizeError
from tests.models import SharedBias, StochasticDepth
from tests.rank_comparison import furthest, mesh_of, vectors
from tests.ranks import on_ranks


def warm():
    """A warm start goes on from the last step's states: more and more exact, until it forgets, or shapes change."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), *(StochasticDepth(6) for _ in range(11))).double().eval()
    net = layer_parallel(model, example_inputs=vectors(2, 6), coarsening=2, forward_iterations=1, warm_start=True)
    stage = net.distribute(mesh_of(2), timeout=30)
    x, last = vectors(3, 6), []
    for step in range(5):
        if step == 3:
            stage.forget()
        stage.step(x[:2] if step == 4 else x, loss_fn=lambda y: y.square().mean())
        last.append(stage.history[-1].forward[-1])
        stage(-x)  # an evaluation has no part in it
    return last, len(stage.receive_orders)


def test_a_warm_start_goes_on_until_it_forgets() -> None:
    for last, kinds in on_ranks(2, warm):
        assert last[0] > last[1] > last[2]
        assert last[3] == last[0]
        assert last[4] > last[2]
        assert kinds == 4  # cold, warm, of another shape, and the evaluation


def hooked():
    """What each rank sees of a step where a parameter's gradient has a hook; without gradients there is no fault."""
    torch.manual_seed(0)
    net = layer_parallel(SharedBias(8).double(), example_inputs=vectors(2, 6), coarsening=2)
    stage, x = net.distribute(mesh_of(2), timeout=30), vectors(3, 6)
    if dist.get_rank() == 1:
        max(stage.parameters(), key=torch.numel).register_hook(lambda gradient: gradient * 0.5)
    stage(x)
    try:
        stage.step(x, loss_fn=lambda y: y.square().mean())
    except PararealizeError as error:
        return str(error)
    return ""


def test_hooks_on_gradients_are_refused_where_they_are() -> None:
    first, second = on_ranks(2, hooked)
    assert "has the hook" in second
    assert "after backward" in second
    assert "rank 1" in first


def with_contexts():
    """Gradients of contexts come back to the stem, whichever ranks read them."""
    torch.manual_seed(0)
    make = {"example_inputs": vectors(2, 6), "coarsening": 2}
    net = layer_parallel(SharedBias(8).double(), **make)
    stage, x = net.distribute(mesh_of(3), timeout=30), vectors(3, 6)
    loss = net(x).square().mean()
    loss.backward()
    assert torch.allclose(stage.step(x, loss_fn=lambda y: y.square().mean()), loss.detach())
    return furthest(stage, net, "grad")


def test_gradients_of_contexts_reach_the_stem() -> None:
    assert max(on_ranks(3, with_contexts)) < 1e-11
