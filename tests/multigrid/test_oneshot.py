"""One-shot training: states belong to samples, and converge together with the weights; L-BFGS searches in weights."""

import pytest
import torch

from pararealize import layer_parallel
from pararealize.errors import MultigridError
from pararealize.multigrid.oneshot import OneShot, SampleStates, names_of
from tests.chains import F64, Chains, example


def made(h: float = 0.2):
    torch.manual_seed(0)
    x = example(8)
    model = Chains((12,), (6,), h=h).double()
    return layer_parallel(model, 2, 2, example_inputs=x), model, x


def test_states_gradients_and_weights_converge_together() -> None:
    net, model, x = made()
    target = torch.randn(8, 2, dtype=F64)
    one_shot = OneShot(net, torch.optim.SGD(net.parameters(), lr=0.05))
    losses = [float(one_shot.step(lambda: (net(x) - target).square().mean())) for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]
    assert net.history[-1].forward[0] < 0.03 * net.history[0].forward[0]
    model.load_state_dict(net.state_dict())
    values: list[torch.Tensor] = []

    def loss() -> torch.Tensor:
        values.append(net(x))
        return (values[0] - target).square().mean()

    one_shot.step(loss)
    with torch.no_grad():
        assert float((values[0] - model(x)).norm()) < 0.01 * float(model(x).norm())


def test_samples_keep_their_states_in_any_batch() -> None:
    """With a learning rate of zero, shuffled batches converge to the exact gradient all the same."""
    net, model, x = made()
    one_shot = OneShot(net, torch.optim.SGD(net.parameters(), lr=0.0))
    for epoch in range(16):
        order = torch.randperm(8, generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(4):
            one_shot.step(lambda rows=rows: net(x[rows]).square().sum(), names_of(x[rows]))
    assert len(one_shot.states) == 8
    assert net.history[-1].forward[0] < 1e-10
    assert net.history[-1].backward[0] < 1e-10
    ours = net.chains[0][3].first.weight.grad
    model(x[rows]).square().sum().backward()
    torch.testing.assert_close(ours, model.chains[0][3].first.weight.grad, rtol=1e-8, atol=1e-10)


def test_a_new_sample_starts_from_a_coarse_guess() -> None:
    states = SampleStates()
    assert states.of(["a"]) == {}
    states.keep(["a", "b"], {"forward": [torch.tensor([[1.0], [2.0]])]})
    assert states.of(["a", "c"]) == {}
    states.keep(["c", "a"], {"forward": [torch.tensor([[3.0], [4.0]])]})
    assert states.of(["a", "b", "c"])["forward"][0].flatten().tolist() == [4.0, 2.0, 3.0]
    assert len(states) == 3


def test_states_of_another_type_are_dropped() -> None:
    states = SampleStates()
    states.keep(["a", "b"], {"forward": [torch.tensor([[1.0], [2.0]])]})
    states.keep(["b"], {"forward": [torch.tensor([[3.0]], dtype=torch.bfloat16)]})
    assert states.of(["a"]) == {}
    assert states.of(["b"])["forward"][0].dtype is torch.bfloat16


def test_evaluation_between_steps_begins_anew_and_leaves_states_alone() -> None:
    net, _, x = made()
    one_shot = OneShot(net, torch.optim.SGD(net.parameters(), lr=0.0))
    one_shot.step(lambda: net(x).square().mean())
    before = dict(net.states)
    first = net(x)
    net(-x)
    assert torch.equal(net(x), first)
    assert all(net.states[way] is points for way, points in before.items())


def test_names_are_those_of_values() -> None:
    x = torch.randn(4, 3)
    assert names_of(x[[2, 0]]) == [names_of(x)[2], names_of(x)[0]]
    assert len(set(names_of(x))) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64])
def test_names_of_any_element_type(dtype: torch.dtype) -> None:
    x = torch.arange(8).view(4, 2).to(dtype) if dtype is not torch.bool else torch.eye(4, dtype=dtype)
    for values in (x, x[:, 0].contiguous()):
        assert names_of(values[[2, 0]]) == [names_of(values)[2], names_of(values)[0]]
    assert len(set(names_of(x))) == 4


@pytest.mark.parametrize("kind", [torch.tensor, list, lambda order: list(torch.tensor(order)), iter])
def test_numbers_are_names_however_they_come(kind) -> None:
    """A data loader gives the samples' numbers as a tensor, whose entries are equal to none but themselves."""
    residuals = []
    for names in (kind, lambda order: names_of(x[order])):  # noqa: B023
        net, _, x = made()
        one_shot = OneShot(net, torch.optim.SGD(net.parameters(), lr=0.0))
        for order in ([0, 1, 2, 3], [4, 5, 6, 7], [2, 7, 0, 5]):
            one_shot.step(lambda net=net, rows=x[order]: net(rows).square().sum(), names(order))
        assert len(one_shot.states) == 8
        residuals.append([norms.forward[0] for norms in net.history])
    assert residuals[0] == residuals[1]


def test_another_number_of_names_or_none_that_can_be_told_apart_is_refused_before_the_update() -> None:
    net, _, x = made()
    one_shot = OneShot(net, torch.optim.SGD(net.parameters(), lr=0.1))
    before = [parameter.clone() for parameter in net.parameters()]
    for names, words in (
        (list(range(7)), "7 samples are named, and the values between the layers have 8"),
        ([[i] for i in range(8)], "names are a list .*unhashable"),
        (x, r"names are a \(8, 3\) tensor"),
        (8, "names are a int"),
    ):
        with pytest.raises(MultigridError, match=words):
            one_shot.step(lambda: net(x).square().sum(), names)
    assert len(one_shot.states) == 0
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))
    with pytest.raises(MultigridError, match="1 samples are named"):
        SampleStates().keep(["a"], {"forward": [torch.zeros(2, 1)]})


def test_lbfgs_with_a_line_search() -> None:
    """Every evaluation of a step begins from the same states, so that the loss is a function of the weights."""
    net, _, x = made()
    target = torch.randn(8, 2, dtype=F64)
    one_shot = OneShot(net, torch.optim.LBFGS(net.parameters(), max_iter=4, line_search_fn="strong_wolfe"), 2)
    begins = []
    net.register_forward_pre_hook(
        lambda module, _: begins.append([id(point) for point in module.states.get("forward", [])])
    )
    losses = []
    for _ in range(8):
        begins.clear()
        losses.append(float(one_shot.step(lambda: (net(x) - target).square().mean())))
        assert len(begins) > 1
        assert all(begin == begins[0] for begin in begins)
    assert losses[-1] < 0.5 * losses[0]


def test_refusals() -> None:
    net, _, _ = made()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for arguments in ((0,), (1, 0)):
        with pytest.raises(MultigridError, match="iterations are 0"):
            OneShot(net, optimizer, *arguments)
