"""Layer-parallel networks over several ranks compute what they compute in one process, whatever stands where."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from beside import distance, furthest, images, mean_square, mesh_of, optimiser, tensor_of, vectors
from models import LanguageModel, MaskedTransformer, Residual, SharedBias, StochasticDepth
from ranks import on_ranks
from torch import nn

from pararealize import layer_parallel

TIGHT = 1e-11


class Chains(nn.Module):
    """Two chains of pre- and post-activation blocks with batch norm, and a transition between them."""

    def __init__(self, depth=7, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.first = nn.Sequential(*(Residual(width) for _ in range(depth)))
        self.second = nn.Sequential(*(Residual(2 * width, 2 * width) for _ in range(depth - 2)))
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.fc = nn.Linear(2 * width, 3)

    def forward(self, x):
        return self.fc(self.second(self.down(self.first(self.conv(x)))).mean((2, 3)))


class Dropped(nn.Sequential):
    """Dropout within residual blocks."""

    def __init__(self, depth=9, width=6):
        super().__init__(nn.Linear(6, width), *(StochasticDepth(width, 0.3) for _ in range(depth)), nn.Linear(width, 2))


def ids(batch):
    return torch.randint(0, 11, (batch, 5))


# name: (model, inputs of a batch size, arguments of layer_parallel)
NETWORKS = {
    "two chains, batch norm": (Chains, images, {"coarsening": 3}),
    "two chains, FCF": (Chains, images, {"coarsening": 2, "relaxation": "FCF", "backward_iterations": 2}),
    "three levels": (Chains, images, {"coarsening": 2, "levels": 3, "forward_iterations": 3}),
    "F-cycles of three levels": (
        Dropped, lambda b: vectors(b, 6), {"coarsening": 2, "levels": 3, "cycle": "F", "relaxation": "FCF"}
    ),
    "dropped paths": (Dropped, lambda b: vectors(b, 6), {"coarsening": 3, "backward_iterations": 2}),
    "masks and dropout": (lambda: MaskedTransformer(7), ids, {"coarsening": 2}),
    "context with gradients": (lambda: SharedBias(8), lambda b: vectors(b, 6), {"coarsening": 2}),
    "two residuals a layer, tied": (lambda: LanguageModel(5), ids, {"coarsening": 3, "forward_iterations": 3}),
    "layers that are one": (lambda: LanguageModel(4, shared=True), ids, {"coarsening": 3}),
    "a warm start": (Chains, images, {"coarsening": 3, "warm_start": True}),
    "a tolerance": (Chains, images, {"coarsening": 3, "forward_iterations": 4, "tolerance": 1.0}),
    "as it is": (Chains, images, {"coarsening": 3, "exact": True}),
}  # fmt: skip


def made(name):
    make, batch, arguments = NETWORKS[name]
    torch.manual_seed(0)
    model = nn.Sequential(make()).double().train()  # names of the model itself may be those of the result
    return layer_parallel(model, example_inputs=batch(2), **arguments), batch


def apart(ours, theirs):
    """The largest relative difference of two rows of norms; infinite where they differ in length."""
    if len(ours) != len(theirs):
        return float("inf")
    return max((abs(a - b) / max(b, 1e-9) for a, b in zip(ours, theirs, strict=True) if a > 1e-12), default=0.0)


def follow(names):
    """Four steps, ragged batches among them, beside the network in one process; then evaluation."""
    mesh, found = mesh_of(dist.get_world_size()), {}
    for name in names:
        net, batch = made(name)
        stage = net.distribute(mesh, timeout=30)
        pair = [(net, optimiser(net)), (stage, optimiser(stage))] if list(stage.parameters()) else []
        worst = dict.fromkeys(["loss", "gradient", "state", "norms", "evaluation"], 0.0)
        for step, rows in enumerate((3, 2, 2, 3)):
            torch.manual_seed(step)  # the first rank alone draws the seed of dropout
            x = batch(rows)
            for module, optimizer in pair:
                optimizer.zero_grad()
                torch.manual_seed(100 + step)  # of dropout
                if module is net:
                    output = net(x)
                    target = torch.linspace(-1, 1, tensor_of(output).numel()).view_as(tensor_of(output)).double()
                    expected = mean_square(output, target)
                    expected.backward()
                else:
                    loss = stage.step(x, target=target, loss_fn=mean_square)
            worst["loss"] = max(worst["loss"], distance(loss, expected.detach()))
            worst["gradient"] = max(worst["gradient"], furthest(stage, net, "grad"))
            for way in ("forward", "backward") if net.history else ():
                rows_of = [getattr(module.history[-1], way) for module in (stage, net)]
                worst["norms"] = max(worst["norms"], apart(*rows_of))
            for _, optimizer in pair:
                optimizer.step()
            worst["state"] = max(worst["state"], furthest(stage, net, "state"))
        net.eval(), stage.eval()
        with torch.no_grad():
            output = stage(x, everywhere=True)
            worst["evaluation"] = distance(tensor_of(output), tensor_of(net(x)))
        assert len(stage.history) == len(net.history)
        found[name] = worst
    return found


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_rank_gets_what_one_process_computes(size):
    found = on_ranks(size, follow, list(NETWORKS), seconds=55)
    for name in NETWORKS:
        for rank in range(size):
            assert max(found[rank][name].values()) < TIGHT, (rank, name, found[rank][name])
