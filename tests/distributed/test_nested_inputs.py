"""Ranks take what the original's forward takes, a dict of tensors too, and what is packed between blocks they send."""

from __future__ import annotations

import torch

from pararealize import layer_parallel
from pararealize.errors import ExampleError, RankError
from tests.nested_inputs import Tabular, table
from tests.rank_comparison import check, converted, distance, follow, furthest, mean_square, mesh_of
from tests.ranks import on_ranks


def refused() -> list[str]:
    net, _ = converted("a dict of inputs")
    faults = []
    for inputs in ((), (table(4)["num"],), ({"num": table(4)["num"]},)):
        stage = net.distribute(mesh_of(2), timeout=30)
        try:
            stage.step(*inputs, target=torch.zeros(4, 2), loss_fn=mean_square)
        except (ExampleError, RankError) as error:  # the other rank's fault, where that was the first to say so
            faults.append(str(error))
    return faults


def layers() -> dict[str, float]:
    """Multigrid on two ranks beside one process."""
    torch.manual_seed(0)
    model = Tabular().double()
    net = layer_parallel(model, coarsening=2, example_inputs=table(2))
    stage = layer_parallel(model, coarsening=2, example_inputs=table(2), mesh=mesh_of(2))
    torch.manual_seed(1)
    worst = 0.0
    for rows in (4, 3):
        inputs = table(rows)
        net.zero_grad()
        stage.zero_grad()
        loss = mean_square(net(inputs), torch.zeros(rows, 2))
        loss.backward()
        ours = stage.step(inputs, target=torch.zeros(rows, 2), loss_fn=mean_square)
        worst = max(worst, distance(ours, loss), furthest(stage, net, "grad"))
    return {"worst": worst}


def test_ranks_are_the_network_of_one_process() -> None:
    names = ["a dict of inputs", "skips that add up", "reversible halves"]
    check(on_ranks(2, follow, names), names)


def test_ranks_refuse_other_inputs() -> None:
    for faults in on_ranks(2, refused):
        assert len(faults) == 3
        assert "does not take this call" in faults[0]
        assert "'batch' is a tensor, and the network was captured with a dict of cat, num" in faults[1]
        assert "'batch' is a dict of num, and the network" in faults[2]


def test_layers_on_ranks_take_a_dict() -> None:
    for result in on_ranks(2, layers):
        assert result["worst"] < 1e-10
