"""Recipes: the learning rate against torch's schedulers, He's weights, refusals, JSON."""

import json
import math

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from pararealize import Recipe, pararealize
from pararealize.errors import RecipeError
from pararealize.models import resnet20
from pararealize.train.recipe import he_weights
from tests.ranks import on_ranks
from tests.training import network


def torchs(make, steps):
    """What a scheduler of torch's gives, step by step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(recipe, steps):
    return [recipe.lr_at(step, steps=steps) for step in range(steps)]


def test_steps_are_torchs_milestones():
    scheduler = torch.optim.lr_scheduler.MultiStepLR
    expected = torchs(lambda optimizer: scheduler(optimizer, [12, 24], gamma=0.2), 30)
    assert ours(Recipe(epochs=5, milestones=(2, 4), gamma=0.2), 30) == pytest.approx(expected)


def test_a_cosine_is_torchs():
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR
    expected = torchs(lambda optimizer: scheduler(optimizer, T_max=30), 30)
    assert ours(Recipe(epochs=5, schedule="cosine"), 30) == pytest.approx(expected)


def test_a_warm_up_is_torchs():
    scheduler = torch.optim.lr_scheduler.LinearLR
    expected = torchs(lambda optimizer: scheduler(optimizer, start_factor=0.25, total_iters=3), 10)
    assert ours(Recipe(epochs=5, schedule="constant", warmup=4), 10) == pytest.approx(expected)


def test_the_paper_turns_after_80_and_120_epochs():
    recipe = Recipe()
    rates = [recipe.lr_at(391 * epoch, steps=391 * 200) for epoch in (79, 80, 119, 120, 199)]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.001, 0.001])
    assert recipe.turns == (80, 120)


def test_optimisers():
    parameters = [nn.Parameter(torch.zeros(2))]
    sgd = Recipe(nesterov=True, lr=0.3).make_optimizer(parameters).param_groups[0]
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"], sgd["nesterov"]) == (0.3, 0.9, 5e-4, True)
    assert isinstance(Recipe(optimizer="adamw").make_optimizer(parameters), torch.optim.AdamW)


def test_smoothed_labels():
    output, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    targets = 0.7 * nn.functional.one_hot(labels, 4) + 0.3 / 4
    expected = -(targets * output.log_softmax(1)).sum(1).mean()
    assert torch.allclose(Recipe(label_smoothing=0.3).loss(output, labels), expected)


@pytest.mark.parametrize(
    "values, told",
    [
        ({"epochs": 0}, "epochs is 0; pass an integer of at least 1"),
        ({"epochs": 2.5}, "epochs is 2.5"),
        ({"epochs": True}, "epochs is True"),
        ({"lr": 0.0}, "lr is 0.0; pass a positive number"),
        ({"lr": math.nan}, "lr is nan"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; pass 'sgd' or 'adamw'"),
        ({"schedule": "step"}, "schedule is 'step'"),
        ({"amp": "fp16"}, "amp is 'fp16'; pass None or 'bfloat16' or 'float16'"),
        ({"initialise": "xavier"}, "initialise is 'xavier'"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"milestones": (3, 2)}, r"milestones is \(3, 2\); pass positive numbers in rising order"),
        ({"milestones": (0,)}, "milestones"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov is True"),
        ({"nesterov": True, "optimizer": "adamw"}, "nesterov is True"),
        ({"epochs": 0, "lr": -1.0}, "epochs is 0.*; and lr is -1.0"),
    ],
)
def test_refusals(values, told):
    with pytest.raises(RecipeError, match=told):
        Recipe(**values)


def test_json():
    recipe = Recipe(epochs=7, milestones=[2, 3.5], clip=1.0, amp="bfloat16", initialise="he")
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    with pytest.raises(RecipeError, match="beta: no such value of a recipe; there are epochs"):
        Recipe.from_dict({"beta": 1})


def test_it_prints():
    recipe = Recipe(epochs=10, clip=1, warmup=3, amp="float16", label_smoothing=0.1)
    assert str(recipe) == (
        "10 epochs of SGD, momentum 0.9, weight decay 0.0005, lr 0.1, times 0.1 after 4, 6 epochs; warm-up of 3 steps; "
        "labels smoothed by 0.1; gradients clipped at 1; autocast to float16"
    )
    assert "AdamW" in str(Recipe(optimizer="adamw", schedule="cosine"))


def test_hes_weights():
    net = pararealize(resnet20(), 2, coarse="paper")
    added = {name: p.clone() for name, p in net.named_parameters() if name.startswith(("adapters.", "coarse."))}
    before = net.fc.weight.clone()
    assert he_weights(net, 3) == sum(
        isinstance(m, nn.Conv2d) for name, m in net.named_modules() if not name.startswith(("adapters.", "coarse."))
    )
    weight = net.get_parameter("stage3.1.conv1.weight")  # 36,864 numbers: 1 % is three standard errors
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert abs(weight.mean().item()) < 3 * weight.std().item() / math.sqrt(weight.numel())
    assert torch.equal(net.fc.weight, before)
    assert all(torch.equal(net.get_parameter(name), value) for name, value in added.items())
    again = resnet20()
    he_weights(again, 3)
    assert torch.equal(again.get_parameter("stage3.1.conv1.weight"), weight)  # by its name, not by the order
    he_weights(again, 4)
    assert not torch.equal(again.get_parameter("stage3.1.conv1.weight"), weight)
    assert he_weights(network(), 0) == 0


class Reads(nn.Module):
    """A layer with the kernel of another module's convolution, of which it has no module."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return x + torch.tanh(nn.functional.conv1d(x, self.weight, padding=1))


def tied_convolutions():
    """A model whose last layers have the kernels of the first."""
    torch.manual_seed(0)
    first = [nn.Conv1d(4, 4, 3, padding=1) for _ in range(3)]
    tied = nn.Conv1d(4, 4, 3, padding=1)
    tied.weight, tied.bias = first[1].weight, first[0].bias
    between, last = (nn.Conv1d(4, 4, 3, padding=1) for _ in range(2))
    model = nn.Sequential(*first, between, tied, Reads(first[2].weight), last)
    return pararealize(model, n=2, coarse="linear", example_inputs=torch.zeros(2, 4, 8))


def drawn_on_ranks():
    stage = tied_convolutions().distribute(init_device_mesh("cpu", (2,), mesh_dim_names=("parareal",)), timeout=20)
    return he_weights(stage, 3), {name: value.tolist() for name, value in stage.state_dict().items()}


def test_hes_weights_of_tied_convolutions_are_those_of_one_process_on_every_rank():
    net = tied_convolutions()
    (first_count, first), (last_count, last) = on_ranks(2, drawn_on_ranks)
    assert first_count + last_count == he_weights(net, 3) == 6
    assert {"1.weight", "2.weight"} <= first.keys()
    assert {"4.weight", "5.weight"} <= last.keys()
    whole = {name: value.tolist() for name, value in net.state_dict().items()}
    for state in (first, last):
        assert state == {name: whole[name] for name in state}
