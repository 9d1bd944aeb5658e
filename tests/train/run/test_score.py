"""Scores against a loop by hand; training flags as found; networks that give no logits."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from pararealize import Recipe, evaluate, fit, pararealize, run_local
from pararealize.errors import ExampleError
from pararealize.train.run.score import logits_of
from tests.ranks import on_ranks
from tests.training import WIDTH, chain, network, samples


def test_a_score_is_that_of_a_loop_by_hand():
    net, data = network(), samples()
    score = evaluate(net, data)
    net.eval()
    output = net(data.test_images).double()
    loss = nn.functional.cross_entropy(output, data.test_labels)
    assert score.loss == pytest.approx(loss.item(), rel=1e-6)
    assert score.count == 13
    assert score.error == pytest.approx((output.argmax(1) != data.test_labels).double().mean().item())
    assert score.accuracy == 1 - score.error
    assert str(score) == f"error {score.error:.2%}, loss {score.loss:.4f} on 13 samples"


def test_flags_and_statistics_stay():
    net = chain()
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    evaluate(net, samples())
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_have_the_type_of_the_network(dtype):
    net = chain().to(dtype)
    history = fit(net, samples(), Recipe(epochs=1))
    assert history.score == evaluate(net, samples())
    assert next(net.parameters()).dtype is dtype


class Wrapped(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.inner, self.way = chain(), way

    def forward(self, x):
        return self.way(self.inner(x))


class Double(nn.Module):
    """From single to double precision."""

    def forward(self, x):
        return x.double()


def two_types():
    model = nn.Sequential(*list(chain(dropout=0.0))[:12], Double(), *list(chain(dropout=0.0).double())[12:])
    return pararealize(model, 2, coarse="linear", example_inputs=torch.zeros(2, WIDTH), cuts=["13"])


def on_two_ranks():
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("parareal",))
    stage = two_types().distribute(mesh, timeout=20)
    return {parameter.dtype for parameter in stage.parameters()}, fit(stage, samples(), Recipe(epochs=1)).score


def test_ranks_of_two_types_take_the_inputs_that_one_process_does():
    expected = fit(two_types(), samples(), Recipe(epochs=1)).score
    types, scores = zip(*on_ranks(2, on_two_ranks), strict=True)
    assert types == ({torch.float32}, {torch.float64})
    assert all(score.loss == pytest.approx(expected.loss, rel=1e-3) for score in scores)


def test_logits_may_be_wrapped():
    expected = evaluate(chain(), samples())
    assert evaluate(Wrapped(lambda y: {"logits": y}), samples()) == expected


@pytest.mark.parametrize(
    "way, told",
    [
        (lambda y: y.mean(1), r"for 8 samples the network gives a tensor of shape \(8,\)"),
        (lambda y: y[:1], r"a tensor of shape \(1, 8\).*logits of shape \(8, classes\)"),
        (lambda y: (y, y), "gives tuple"),
        (lambda y: {"features": y}, "gives dict"),
    ],
)
def test_no_logits(way, told):
    with pytest.raises(ExampleError, match=told):
        evaluate(Wrapped(way), samples())


def test_logits_of_an_object():
    class Output:
        logits = torch.zeros(2, 3)

    assert logits_of(Output(), torch.zeros(2)) is Output.logits


def test_too_few_classes():
    few, data = Wrapped(lambda y: y[:, :2]), samples()
    told = r"logits of 2 classes and the data has 3; build it with at least as many outputs \(num_classes=3\)"
    with pytest.raises(ExampleError, match=told):
        evaluate(few, data)
    with pytest.raises(ExampleError, match=told):
        fit(few, data, Recipe(epochs=1))


def test_modules_that_were_set_apart_keep_their_mode():
    net, recipe = network(dropout=0.0), Recipe(epochs=1)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm1d)]
    for norm in norms[:3]:
        norm.eval()
    before = [norm.running_mean.clone() for norm in norms]
    fit(net, samples(), recipe)
    assert net.training
    assert [norm.training for norm in norms] == [False] * 3 + [True] * 3
    kept = [torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True)]
    assert kept == [True] * 3 + [False] * 3
    fit(net.eval(), samples(), recipe)
    assert all(module.training for module in net.modules())
    local = run_local(net.eval()).train()
    net.eval()  # all that it runs
    fit(local, samples(), recipe)
    assert all(norm.training for norm in norms)
