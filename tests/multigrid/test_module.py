"""Layer-parallel networks against the networks that they were made from: values, gradients, statistics, refusals."""

import copy
import functools
import itertools
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

from pararealize import layer_parallel, models
from pararealize.errors import ModelError, MultigridError, RecordingWarning
from tests.chains import F64, Block, Chains, example
from tests.models import MaskedTransformer, Perceptron, SharedBias, SmallResNet


def gradients(net: nn.Module, x: Tensor, seed: int = 3) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """Output, the parameters' gradients and the input's, of one weighted sum."""
    net.zero_grad()
    x = x.clone().requires_grad_(x.is_floating_point())
    torch.manual_seed(seed)
    y = net(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return y.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}, x.grad


def assert_same(ours: nn.Module, theirs: nn.Module, x: Tensor, rtol: float = 1e-9) -> None:
    (y, grads, dx), (y2, grads2, dx2) = gradients(ours, x), gradients(theirs, x)
    close = functools.partial(torch.testing.assert_close, rtol=rtol, atol=1e-11)
    close(y, y2)
    assert grads.keys() == grads2.keys()
    for name in grads:
        close(grads[name], grads2[name])
    if dx2 is not None:
        close(dx, dx2)
    state, state2 = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(state2)
    for name in state:
        close(state[name], state2[name])


def converged(model: nn.Module, x, levels: int = 2, coarsening: int = 2, **settings):
    """With as many iterations as there are coarse intervals."""
    net = layer_parallel(model, levels, coarsening, 1, 1, example_inputs=x, **settings)
    net.forward_iterations = net.backward_iterations = len(net.hierarchy.levels[0].intervals)
    return net


def error(net: nn.Module, model: nn.Module, x: Tensor) -> float:
    ours, theirs = (torch.cat([g.flatten() for g in gradients(m, x)[1].values()]) for m in (net, model))
    return float((ours - theirs).norm() / theirs.norm())


# --------------------------------------------------------------------------------------------- exact after J iterations


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=3).filter(lambda chains: max(chains) >= 4),
    st.integers(2, 3),
    st.integers(2, 3),
    st.sampled_from(["F", "FCF"]),
    st.sampled_from(["V", "F"]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_as_many_iterations_as_intervals_are_the_serial_network(
    lengths, levels, coarsening, relaxation, cycle, post, norm, seed
) -> None:
    """Values, gradients and batch-norm statistics, for random chains, levels, coarsening and relaxation."""
    torch.manual_seed(seed)
    model = Chains(lengths, [3 + i for i in range(len(lengths))], post=post, norm=norm).double()
    x = example()
    net = converged(model, x, levels, coarsening, relaxation=relaxation, cycle=cycle)
    blocks = sum(not layer.fixed for layer in net.structure.layers)
    assert blocks == sum(lengths)
    assert_same(net, model, x)


NETWORKS = {
    "resnet20": (models.resnet20, lambda: torch.randn(2, 3, 8, 8)),
    "post-activation, in place": (lambda: SmallResNet(4), lambda: torch.randn(2, 3, 8, 8)),
    "shared table and conditioning": (SharedBias, lambda: torch.randn(3, 6)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_every_kind(name: str, training: bool) -> None:
    make, inputs = NETWORKS[name]
    model, x = make().double().train(training), inputs().double()
    before = copy.deepcopy(model.state_dict())
    net = converged(model, x)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert_same(net, model, x)


def test_transformers_two_residuals_a_layer_with_a_mask() -> None:
    import torchvision

    vit = torchvision.models.VisionTransformer(8, 4, 3, 2, 8, 16).double().eval()
    net = converged(vit, torch.randn(2, 3, 8, 8, dtype=F64))
    assert len(net.structure.layers) == 6
    assert_same(net, vit, torch.randn(2, 3, 8, 8, dtype=F64))
    masked, ids = MaskedTransformer(6).double().eval(), torch.randint(0, 11, (3, 7))
    assert_same(converged(masked, ids), masked, torch.randint(0, 11, (4, 7)))


# -------------------------------------------------------------------------------------------- few iterations are close


@pytest.mark.parametrize("relaxation", ["F", "FCF"])
def test_each_iteration_is_closer(relaxation: str) -> None:
    """Errors fall with the iterations of both ways, and FCF's faster; one iteration is really inexact."""
    torch.manual_seed(0)
    model, x = Chains((16,), (6,), h=1 / 4).double(), example()
    errors = []
    for k in range(1, 6):
        net = layer_parallel(model, 2, 2, k, k, relaxation, x)
        errors.append(error(net, model, x))
    assert errors[0] > 1e-3
    assert all(later < 0.7 * earlier for earlier, later in itertools.pairwise(errors))
    if relaxation == "FCF":
        assert errors[2] < error(layer_parallel(model, 2, 2, 3, 3, "F", x), model, x)


def test_coarse_gradients_are_those_of_the_coarse_network() -> None:
    """With one iteration each, λ at the C-points follows the coarse steps' transposes at the forward's C-points."""
    torch.manual_seed(1)
    for post in (False, True):
        model, x = Chains((6,), (4,), post=post).double(), example()
        net = layer_parallel(model, 2, 3, 1, 1, example_inputs=x)
        _, grads, _ = gradients(net, x)
        blocks = model.chains[0]

        def coarse(u: Tensor, n: int, blocks=blocks, post=post) -> Tensor:
            f = blocks[n].h * blocks[n].second(torch.tanh(blocks[n].first(u)))
            return torch.relu(u + 3 * f) if post else u + 3 * f

        u0 = torch.relu(model.stem(x)).detach()
        u3 = coarse(u0, 0).detach().requires_grad_()
        u6 = u3
        for n in (3, 4, 5):
            u6 = blocks[n](u6)
        u6 = u6.detach().requires_grad_()
        y = model.head(u6)
        (y * torch.linspace(-1, 1, y.numel(), dtype=F64).view_as(y)).sum().backward()
        lam6 = u6.grad
        (lam3,) = torch.autograd.grad(coarse(u3, 3), u3, lam6)
        u = u0.requires_grad_()
        for n in (0, 1):
            u = blocks[n](u)
        expected = torch.autograd.grad(blocks[2](u), blocks[2].second.weight, lam3)[0]
        torch.testing.assert_close(grads["chains.0.2.second.weight"], expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("post", [False, True])
def test_adjoint_dot_product(post: bool) -> None:
    """⟨w, J v⟩ = ⟨Jᵀ w, v⟩, with J v by central differences of the network itself."""
    torch.manual_seed(4)
    model = Chains((5, 4), (4, 5), post=post).double()
    x, v, w = example(), example(), torch.randn(5, 2, dtype=F64)
    net = converged(model, x, 3)
    forward = (model(x + 1e-6 * v) - model(x - 1e-6 * v)) / 2e-6
    x.requires_grad_()
    (back,) = torch.autograd.grad(net(x), x, w)
    torch.testing.assert_close((forward * w).sum(), (back * v).sum(), rtol=1e-7, atol=1e-9)


# --------------------------------------------------------------------------------------------------- the known problem


class KnownStep(nn.Module):
    """x + h·relu(conv2(relu(conv1(x)))) with the weights of a seed."""

    def __init__(self, i: int, h: float) -> None:
        super().__init__()
        self.h = h
        generator = torch.Generator().manual_seed(1000 + i)
        self.conv1, self.conv2 = (seeded(nn.Conv2d(8, 8, 3, padding=1), generator) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.h * torch.relu(self.conv2(torch.relu(self.conv1(x))))


def seeded(layer: nn.Module, generator: torch.Generator) -> nn.Module:
    """Weights randn·sqrt(2 / fan_in), biases zero."""
    with torch.no_grad():
        fan_in = layer.weight[0].numel()
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * math.sqrt(2 / fan_in))
        layer.bias.zero_()
    return layer


class Known(nn.Module):
    """64 steps of size 1/64 on 8 channels of 28×28."""

    def __init__(self) -> None:
        super().__init__()
        self.opening = seeded(nn.Conv2d(1, 8, 3, padding=1), torch.Generator().manual_seed(999))
        self.steps = nn.Sequential(*(KnownStep(i, 1 / 64) for i in range(64)))
        self.closing = seeded(nn.Linear(8 * 784, 10), torch.Generator().manual_seed(998))

    def forward(self, x: Tensor) -> Tensor:
        return self.closing(self.steps(torch.relu(self.opening(x))).flatten(1))


def test_the_known_problem() -> None:
    """Residuals and errors of the layers' gradients that TorchBraid has too: batch 32, c = 4, F-relaxation."""
    generator = torch.Generator().manual_seed(5)
    images = [F.avg_pool2d(torch.randn(32, 1, 32, 32, generator=generator), 5, 1) * 3 for _ in range(8)]
    labels = [torch.randint(0, 10, (32,), generator=generator) for _ in range(8)]
    x, y, model = images[5], labels[5], Known()

    def gradient(net: nn.Module) -> Tensor:
        F.cross_entropy(net(x), y).backward()
        return torch.cat([p.grad.flatten() for name, p in net.named_parameters() if name.startswith("steps")])

    exact = gradient(model)
    net = layer_parallel(model, 2, 4, 2, 1, example_inputs=x[:2])
    found = gradient(net)
    assert net.history[-1].forward == pytest.approx([63.44, 8.978], rel=1e-3)
    assert float((found - exact).norm() / exact.norm()) == pytest.approx(0.117, rel=1e-2)
    net.zero_grad()
    net.forward_iterations, net.backward_iterations = 5, 4
    found = gradient(net)
    assert net.history[-1].forward[:4] == pytest.approx([63.44, 8.978, 1.045, 0.1083], rel=1e-3)
    assert float((found - exact).norm() / exact.norm()) == pytest.approx(7.4e-4, rel=1e-2)


# ------------------------------------------------------------------------------------------------------------ the traps


def test_batch_norm_counts_a_step_once() -> None:
    model, x = Chains((8,), (4,), norm=True).double(), example()
    net = layer_parallel(model, 2, 2, 4, 3, "FCF", x)
    before = {name: value.clone() for name, value in net.state_dict().items() if "running" in name}
    net(x).sum().backward()
    counted = [value for name, value in net.state_dict().items() if name.endswith("num_batches_tracked")]
    assert len(counted) == 8
    assert all(value == 1 for value in counted)
    moved = [not torch.equal(value, net.state_dict()[name]) for name, value in before.items()]
    assert all(moved)
    net.eval()(x)
    assert all(value == 1 for value in counted)


class Shared(nn.Module):
    """One batch norm in all blocks: it counts every block of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + 0.3 * layer(torch.tanh(self.norm(x)))
        return x


def test_a_batch_norm_in_several_blocks() -> None:
    model, x = Shared().double(), example()
    net = converged(model, x)
    assert_same(net, model, x)
    assert net.norm.num_batches_tracked == 6


def test_dropout_has_one_mask_a_step_and_layer() -> None:
    """The iteration converges, to a network with those masks; the next step has others; eval has none."""
    torch.manual_seed(0)
    model, x = Chains((12,), (16,), drop=0.5, h=1 / 12).double(), example(16)
    net = layer_parallel(model, 2, 3, 6, 4, example_inputs=x)
    torch.manual_seed(7)
    net(x).sum().backward()
    assert net.history[-1].forward[-1] < 1e-9 * net.history[-1].forward[0]
    torch.manual_seed(7)
    first, second = net(x), net(x)
    torch.manual_seed(7)
    assert torch.equal(net(x), first)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(net.eval()(x), model.eval()(x), rtol=1e-10, atol=0)
    state = torch.get_rng_state()
    net(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_hooks_of_gradients_that_are_registered_later() -> None:
    """Each pass of a solve would call them; elsewhere, and on what has been accumulated, they act as in any network."""
    model, x = Chains((4,), (6,)).double(), example(3)
    net = converged(model, x)
    for p in (net.head.weight, model.head.weight):
        p.register_hook(lambda gradient: gradient * 0.5)
    norms = []
    net.chains[0][1].first.weight.register_post_accumulate_grad_hook(lambda p: norms.append(p.grad.norm()))
    assert_same(net, model, x)
    assert torch.equal(torch.stack(norms), net.chains[0][1].first.weight.grad.norm()[None])
    handle = net.chains[0][2].first.bias.register_hook(lambda gradient: gradient * 0.5)
    with pytest.raises(MultigridError, match=r"chains.0.2.first.bias has the hook .*lambda.* after backward"):
        net(x)
    with torch.no_grad():
        net(x)
    with net.serially():
        net(x)
    handle.remove()
    net(x).sum().backward()


class Checkpointed(nn.Module):
    """A block whose branch, with a norm, is computed anew in backward; as one call where it is opaque."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.a = nn.BatchNorm1d(width), nn.Linear(width, width)

    def branch(self, x: Tensor) -> Tensor:
        return 0.3 * torch.tanh(self.a(self.norm(x)))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.branch, x, use_reentrant=False)


class AroundCheckpoints(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Checkpointed(4) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        return x


@pytest.mark.parametrize("opaque", [False, True])
def test_statistics_under_checkpoints_move_as_in_the_network(opaque: bool) -> None:
    """Once in forward, and once where the backward pass computes them anew, whatever the iterations."""
    model, x = AroundCheckpoints().double(), torch.randn(5, 4, dtype=F64)
    leaf_modules = (Checkpointed,) if opaque else ()
    assert_same(converged(model, x, leaf_modules=leaf_modules), model, x)
    net = layer_parallel(AroundCheckpoints().double(), 2, 2, 1, 3, example_inputs=x, leaf_modules=leaf_modules)
    net(x).sum().backward()
    assert {int(branch.norm.num_batches_tracked) for branch in net.branches} == {2}


def test_buffers_that_a_layer_has_got_since() -> None:
    """A spectral norm's vectors move once a step."""
    model, x = Chains((6,), (4,)).double(), example()
    net = converged(model, x)
    for module in (net, model):
        torch.manual_seed(0)
        for block in module.chains[0]:
            spectral_norm(block.first)
    assert_same(net, model, x)


class Attending(nn.Module):
    """A block with dropout within torch's attention, and dropout behind it that may stay on in eval mode."""

    def __init__(self, width: int, *, always: bool) -> None:
        super().__init__()
        self.a, self.always = nn.Linear(width, width), always

    def forward(self, x: Tensor) -> Tensor:
        q = self.a(x)
        q = F.scaled_dot_product_attention(q, q, q, dropout_p=0.5 if self.training else 0.0)
        return x + (F.dropout(q, 0.3) if self.always else q)


@pytest.mark.parametrize("always", [False, True])
def test_dropout_of_functions_has_one_mask_a_step_and_layer(always: bool) -> None:
    """Of attention in train mode, and in eval mode where it is always on (Monte Carlo dropout)."""
    model, x = nn.Sequential(*(Attending(4, always=always) for _ in range(6))).double(), torch.randn(3, 5, 4, dtype=F64)
    net = layer_parallel(model, 2, 2, 4, 1, example_inputs=x)
    for training in (True, False):
        net.train(training)
        torch.manual_seed(1)
        first, second = net(x), net(x)
        assert torch.equal(first, second) is not (training or always)
        assert net.history[-1].forward[-1] < 1e-12 * net.history[-1].forward_size
        torch.manual_seed(1)
        with net.in_series():
            torch.testing.assert_close(net(x), first)
            torch.testing.assert_close(net(x), second)


def test_dropout_differs_between_layers_and_leaves_the_random_state_alone() -> None:
    class Ones(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)
            self.gains = nn.ParameterList(nn.Parameter(torch.ones(64)) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for gain in self.gains:
                x = x + self.drop(gain * torch.ones_like(x))
            return x

    net = layer_parallel(Ones(), 2, 2, 2, 1, example_inputs=torch.zeros(2, 64))
    x = torch.zeros(1, 64)
    torch.manual_seed(1)
    net(x).sum().backward()
    grads = torch.stack([gain.grad for gain in net.gains])
    assert set(grads.unique().tolist()) == {0.0, 2.0}
    assert len({tuple(row.tolist()) for row in grads}) == 4
    drawn = torch.rand(1)
    torch.manual_seed(1)
    torch.randint(1 << 62, ())
    assert torch.equal(torch.rand(1), drawn)


def test_gradients_that_are_not_contiguous_and_ragged_batches() -> None:
    model, x = Chains((6,), (4,)).double(), example(6)
    net = converged(model, x)
    for batch in (6, 2, 1):
        results = []
        for module in (net, model):
            module.zero_grad()
            y = module(x[:batch])
            y.backward(torch.linspace(-1, 1, 2 * batch, dtype=F64).view(2, batch).t())
            results.append(module.chains[0][2].first.weight.grad.clone())
        torch.testing.assert_close(*results)


def test_an_exception_in_a_layer_comes_through_and_leaves_no_trace() -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
            self.norms = nn.ModuleList(Picky(3) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for block, norm in zip(self.blocks, self.norms, strict=True):
                x = x + block(norm(x))
            return x

    class Picky(nn.BatchNorm1d):
        bad = False

        def forward(self, x: Tensor) -> Tensor:
            if self.bad:
                raise FloatingPointError("three is no number")
            return super().forward(x)

    net = layer_parallel(Careful(), 2, 2, example_inputs=torch.randn(4, 3), leaf_modules=[Picky])
    buffers = {name: (id(value), value.clone()) for name, value in net.named_buffers()}
    net.norms[3].bad = True
    with pytest.raises(FloatingPointError, match="three is no number"):
        net(torch.randn(4, 3))
    for name, value in net.named_buffers():
        assert (id(value), True) == (buffers[name][0], torch.equal(value, buffers[name][1]) or name.startswith("norms"))
    net.norms[3].bad = False
    net(torch.randn(4, 3)).sum().backward()


def test_frozen_parameters_no_grad_and_inputs_without_gradients() -> None:
    model, x = Chains((6,), (4,)).double(), example()
    for parameter in model.chains[0][1].parameters():
        parameter.requires_grad_(False)
    net = converged(model, x)
    assert_same(net, model, x)
    with torch.no_grad():
        assert not net(x).requires_grad
    for parameter in (*net.parameters(), *model.parameters()):
        parameter.requires_grad_(False)
    assert not net(x).requires_grad
    xs = [x.clone().requires_grad_() for _ in range(2)]
    for module, value in zip((net, model), xs, strict=True):
        module(value).sum().backward()
    torch.testing.assert_close(xs[0].grad, xs[1].grad)


def test_backward_twice_as_in_plain_torch() -> None:
    net = layer_parallel(Chains((6,), (4,)).double(), 2, 2, example_inputs=example())
    loss = net(example()).sum()
    loss.backward(retain_graph=True)
    once = net.stem.weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(net.stem.weight.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    (grad,) = torch.autograd.grad(net(example()).sum(), net.stem.weight, create_graph=True)
    with pytest.raises(MultigridError, match=r"cannot be differentiated again.*within net.serially"):
        grad.sum().backward()


@pytest.mark.filterwarnings("ignore:.*autocast.*:UserWarning")
def test_autocast_keeps_gradients() -> None:
    """Layers are called several times a step, with and without a graph: every weight has its gradient."""
    torch.manual_seed(0)
    model, x = Chains((6,), (8,)), torch.randn(5, 3)
    net = converged(model, x)
    results = []
    for module in (net, model):
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(x).float().square().sum()
        loss.backward()
        results.append({name: p.grad for name, p in module.named_parameters()})
    for name, grad in results[1].items():
        assert results[0][name] is not None, name
        assert (results[0][name] - grad).norm() < 0.05 * grad.norm() + 1e-3, name


# --------------------------------------------------------------------------------------------------------- the module


def test_it_is_an_ordinary_module() -> None:
    model, x = Chains((6, 4), (4, 5), norm=True).double(), example()
    net = layer_parallel(model, 2, 2, 6, 6, example_inputs=x)
    assert list(net.state_dict()) == list(model.state_dict())
    assert [name for name, _ in net.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert net.training
    assert not net.eval().chains[0][0].norm.training
    copied = copy.deepcopy(net.train())
    before = copied.state_dict()["stem.weight"].clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert torch.equal(copied.state_dict()["stem.weight"], before)
    copied.load_state_dict(net.state_dict())
    assert torch.equal(copied.eval()(x), net.eval()(x))
    assert copied.forward_iterations == 6
    assert net.float()(x.float()).dtype == torch.float32
    assert repr(net).startswith("LayerParallelChains(")
    with pytest.raises(ModelError, match="state_dict"):
        pickle.dumps(net)


def test_exact_is_the_network_bit_for_bit_random_numbers_included() -> None:
    torch.manual_seed(0)
    model, x = Chains((6, 4), (4, 5), norm=True, drop=0.3), torch.randn(5, 3)
    net = layer_parallel(model, 2, 2, example_inputs=x, exact=True)
    (y, grads, dx), (y2, grads2, dx2) = gradients(net, x), gradients(model, x)
    assert torch.equal(y, y2)
    assert torch.equal(dx, dx2)
    assert all(torch.equal(grads[name], grads2[name]) for name in grads2)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in net.state_dict().items())
    assert not net.history
    net.exact = False
    net.eval(), model.eval()
    assert not torch.equal(net(x), model(x))
    with net.serially():
        assert torch.equal(net(x), model(x))
    assert not net.exact


def test_history_says_how_far_it_converged() -> None:
    model, x = Chains((12,), (4,), h=1 / 12).double(), example()
    net = layer_parallel(model, 2, 3, 3, 2, example_inputs=x)
    net(x).sum().backward()
    (step,) = net.history
    assert len(step.forward) == 3
    assert len(step.backward) == 2
    assert step.forward[2] < step.forward[1] < step.forward[0]
    assert step.backward[1] < step.backward[0]
    assert "forward" in str(step)
    assert "1 steps" in str(net.history)
    with torch.no_grad():
        net(x)
    assert net.history[-1].backward == []


def test_tolerance_and_warm_start() -> None:
    model, x = Chains((12,), (4,), h=1 / 12).double(), example()
    net = layer_parallel(model, 2, 3, 5, 5, example_inputs=x)
    net(x).sum().backward()
    every = net.history[-1].forward
    net.tolerance = every[2]
    net(x).sum().backward()
    assert net.history[-1].forward == every[:3]
    warm = layer_parallel(model, 2, 3, 1, 1, example_inputs=x, warm_start=True)
    for _ in range(6):
        warm.zero_grad()
        assert error(warm, model, x) >= 0
    assert error(warm, model, x) < 1e-9  # one iteration a step adds up where nothing else changes
    assert warm.history[-1].forward[0] < 1e-9
    warm.forget()
    assert error(warm, model, x) > 1e-4
    assert warm(x[:2]).shape == (2, 2)  # another batch size starts anew


def test_warm_starts_of_train_and_eval_mode_are_apart() -> None:
    model, x = Chains((12,), (4,), h=1 / 12), example().float()
    net = layer_parallel(model, 2, 3, 1, 1, example_inputs=x, warm_start=True)
    net(x).sum().backward()
    net.train(not net.training)
    states, cold = net.states, net(x)
    assert not torch.equal(net(x), cold)
    net.train(not net.training)
    assert net.states is not states
    first = net(x)
    net.forget()
    assert torch.equal(net(x), cold)
    assert not torch.equal(first, cold)


class TwoSpaces(nn.Module):
    """An embedding, and a linear map between two chains: their values have other types under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.between = nn.Embedding(9, 4), nn.Linear(4, 4)
        self.first, self.second = (nn.ModuleList(nn.Linear(4, 4) for _ in range(4)) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.stem(ids)
        for f in self.first:
            x = x + torch.tanh(f(x))
        x = self.between(x)
        for f in self.second:
            x = x + torch.tanh(f(x))
        return x


def test_a_warm_start_after_steps_under_autocast() -> None:
    ids = torch.randint(0, 9, (3, 5))
    net = layer_parallel(TwoSpaces(), 2, 2, 1, 1, example_inputs=ids, warm_start=True)
    cold = net(ids)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            net(ids).float().sum().backward()
        assert torch.equal(net(ids), cold)
        assert not torch.equal(net(ids), cold)


def test_settings_may_change_between_steps_but_not_to_nonsense() -> None:
    net = layer_parallel(Chains(), 2, 2, example_inputs=torch.randn(2, 3))
    net.forward_iterations = 0
    with pytest.raises(MultigridError, match="iterations are 0"):
        net(torch.randn(2, 3))


class Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Chains()

    def forward(self, x: Tensor, scale: int = 2) -> Tensor:
        return self.net(x * scale)


def test_keyword_and_plain_inputs() -> None:
    net = layer_parallel(Sized(), 2, 2, 6, 6, example_inputs={"x": torch.randn(2, 3), "scale": 2})
    x = torch.randn(2, 3)
    assert torch.equal(net(x), net(x=x, scale=2))
    for exact in (False, True):
        net.exact = exact
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RecordingWarning)
            assert net(x, 3).shape == net(x, 2).shape  # recorded anew


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "make, arguments, words",
    [
        (Perceptron, {}, ["no chain of residual blocks", "written out"]),
        (lambda: Chains((1,)), {}, ["one residual block alone"]),
        (Chains, {"coarsening": 7}, ["coarsening = 7", "has 6", "at most 6"]),
        (Chains, {"levels": 3, "coarsening": 6}, ["levels = 3 are too many", "levels=2"]),
        (Chains, {"levels": 0}, ["levels is 0"]),
        (Chains, {"forward_iterations": 0}, ["iterations are 0"]),
        (Chains, {"backward_iterations": -1}, ["iterations are -1"]),
        (Chains, {"relaxation": "C"}, ["relaxation is 'C'", "'FCF'"]),
        (Chains, {"cycle": "W"}, ["cycle is 'W'"]),
        (Chains, {"tolerance": -1.0}, ["tolerance is -1.0"]),
        (Chains, {"tolerance": float("nan")}, ["tolerance is nan"]),
    ],
)
def test_refusals(make, arguments, words) -> None:
    x = torch.randn(2, 8) if make is Perceptron else torch.randn(2, 3)
    with pytest.raises(MultigridError) as caught:
        layer_parallel(make(), **{"coarsening": 2, "example_inputs": x, **arguments})
    assert all(word in str(caught.value) for word in words), caught.value


def test_names_that_the_result_needs() -> None:
    model = nn.Sequential()
    model.add_module("history", nn.Linear(3, 3))
    for i in range(3):
        model.add_module(f"b{i}", Block(3, 0.5, post=False))
    with pytest.raises(ModelError, match="history"):
        layer_parallel(model, 2, 2, example_inputs=torch.randn(2, 3))


def gradients_by_name(net, x):
    parameters = dict(net.named_parameters())
    return torch.func.grad(lambda values: torch.func.functional_call(net, values, (x,)).square().mean())(parameters)


@pytest.mark.parametrize(
    "look",
    [
        gradients_by_name,
        lambda net, x: torch.vmap(net)(x[:, None]),
        lambda net, x: torch.export.export(net, (x,)),
        lambda net, x: net.to("meta")(x.to("meta")),
    ],
    ids=["torch.func.grad", "vmap", "torch.export", "meta device"],
)
def test_what_would_look_into_a_solve_is_told_of_the_network_as_it_is(look) -> None:
    """An operation of autograd with an adjoint of its own ended in an error of torch's; in series there is none."""
    torch.manual_seed(0)
    net, x = layer_parallel(Chains((6,), (4,)), 2, example_inputs=torch.randn(5, 3)).eval(), torch.randn(5, 3)
    compiled = torch.compile(net, backend="eager")
    assert torch.equal(compiled(x), net(x))
    with pytest.raises(MultigridError, match=r"Within net.serially\(\)"):
        look(net, x)
    with net.serially():
        assert look(net, x) is not None
