"""Calibration: exact where it must be, better everywhere, and the original as it was."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pararealize import pararealize
from pararealize.calibration.fine_tuning import fine_tune
from pararealize.calibration.fitting import calibrate
from pararealize.calibration.interfaces import Interfaces
from pararealize.data.catalogue import load
from pararealize.errors import CalibrationError, ExampleError, GuardError, ModelError
from pararealize.network.parareal import messages
from tests.models import LanguageModel, MaskedTransformer, SmallResNet
from tests.tuning_networks import padded_batches, token_net


def images(count: int = 3, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(24, 3, size, size, generator=generator), torch.randint(3, (24,), generator=generator))
        for _ in range(count)
    ]


def trained(model: nn.Module, example: Tensor) -> nn.Module:
    """As if trained: batch norms have seen something."""
    with torch.no_grad():
        for _ in range(3):
            model(example)
    return model.eval()


def small(coarse: object = "paper", n: int = 3, **options: object) -> nn.Module:
    torch.manual_seed(0)
    batches = images()
    return pararealize(trained(SmallResNet(), batches[0][0]), n, example_inputs=batches[0][0], coarse=coarse, **options)


def linear_map(segment: nn.Module, x: tuple[int, ...], y: tuple[int, ...]) -> nn.Module:
    return nn.Linear(x[0], y[0], bias=False, dtype=torch.float64)


def test_a_linear_network_becomes_exact() -> None:
    """Proposition 1: least squares finds F^j = g^{j+1}, whatever the adapters are."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(8))).double()
    batches = [torch.randn(30, 6, dtype=torch.float64) for _ in range(3)]
    net = pararealize(model, 4, example_inputs=batches[0], coarse=linear_map, source="stem")
    net.adapters.requires_grad_(False)  # fitted ones would be exact, and leave no residual to fit to
    calibration = calibrate(net, batches, ridge=0.0)
    assert {fit.method for fit in calibration.fits} == {"left: frozen", "least squares"}
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(net(x), model(x), rtol=1e-9, atol=1e-12)
    assert calibration.stage("after").output < 1e-10 < calibration.stage("before").output
    assert max(calibration.stage("after").interfaces) < 1e-10


def test_an_affine_network_becomes_exact_by_linear_blocks() -> None:
    """F^j is the linear part of g^{j+1}; biases cancel in the residuals."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(5, 5) for _ in range(6))).double()
    batches = [torch.randn(40, 5, dtype=torch.float64)]
    net = pararealize(model, 3, example_inputs=batches[0], coarse=linear_map, source="stem")
    net.adapters.requires_grad_(False)
    calibrate(net, batches, ridge=0.0)
    x = torch.randn(9, 5, dtype=torch.float64)
    torch.testing.assert_close(net(x), model(x), rtol=1e-8, atol=1e-10)
    zero = torch.zeros(5, dtype=torch.float64)
    segment = net.segments["g2"]
    torch.testing.assert_close(net.coarse.F1(x), segment(x) - segment(zero.expand(9, 5)), rtol=1e-8, atol=1e-10)


def test_adapters_are_least_squares_fits_to_the_true_inputs() -> None:
    net = small("linear")
    batches = images()
    calibrate(net, batches, ridge=0.0)
    net.eval()
    x = torch.cat([batch for batch, _ in batches])
    true = net.segments["g1"](net.stem(x))
    adapter = net.adapters["C2"]
    features = x
    for step in list(adapter)[:-1]:
        features = step(features)
    rows = features.movedim(1, -1).flatten(0, -2).double()
    wanted = torch.linalg.lstsq(rows, true.movedim(1, -1).flatten(0, -2).double()).solution.T
    torch.testing.assert_close(adapter.project.weight.detach().flatten(1).double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("coarse", ["paper", "depthwise", "linear", "block", "exact"])
def test_errors_fall_and_the_original_stays(coarse: str) -> None:
    net = small(coarse)
    before = {key: value.clone() for key, value in net.original_state_dict().items()}
    modes = [module.training for module in net.modules()]
    calibration = calibrate(net, images(), steps=20)
    first, last = calibration.stages
    assert all(a < b for a, b in zip(last.adapters, first.adapters, strict=True))
    assert last.interfaces[0] == first.interfaces[0] == 0.0
    assert coarse == "exact" or all(a < b for a, b in zip(last.interfaces[1:], first.interfaces[1:], strict=True))
    after = net.original_state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert [module.training for module in net.modules()] == modes
    assert all(parameter.grad is None for parameter in net.parameters())


def test_what_is_reported_is_what_the_network_does() -> None:
    net, batches = small(), images()
    calibration = calibrate(net, batches, test=batches[:1], steps=5, outputs="logits")
    net.eval()
    x, labels = batches[0]
    with torch.no_grad():
        u = [net.stem(x)]
        for segment in net.segments.values():
            u.append(segment(u[-1]))
        true = net.head(u[-1])
        z = messages(x, [net.stem, *net.adapters.values()], list(net.segments.values()), list(net.coarse.values()))
        output = net(x)
    last = calibration.stage("after")
    wanted = [((a - b).norm() / b.norm()).item() for a, b in zip(z, u[1:], strict=True)]
    assert last.interfaces == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    assert last.output == pytest.approx(((output - true).norm() / true.norm()).item(), rel=1e-4)
    assert last.accuracy == pytest.approx((output.argmax(1) == labels).float().mean().item())
    assert calibration.accuracy == pytest.approx((true.argmax(1) == labels).float().mean().item())
    assert (calibration.samples, calibration.tested, calibration.held_out) == (72, 24, True)


def test_one_seed_gives_one_network_and_the_random_state_stays() -> None:
    states = []
    for _ in range(2):
        net = small("block")
        torch.manual_seed(11)
        calibrate(net, images(), steps=5, seed=4)
        states.append((net.state_dict(), torch.get_rng_state()))
    assert all(torch.equal(a, b) for a, b in zip(states[0][0].values(), states[1][0].values(), strict=True))
    torch.manual_seed(11)
    assert torch.equal(states[0][1], torch.get_rng_state())


def test_what_is_not_kept_is_computed_again() -> None:
    """Linear blocks: the same fit, whether activations are held in memory or not."""
    nets = [small("linear"), small("linear")]
    for net, keep in zip(nets, (1 << 30, 0), strict=True):
        calibrate(net, images(), keep=keep)
    for ours, theirs in zip(*(net.state_dict().values() for net in nets), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    calibrate(small("paper"), images(), keep=0, steps=2)


def test_a_loader_that_shuffles_gives_the_same_network_whatever_fits_into_memory() -> None:
    """Read again, it gave other batches, and samples held out were fitted to."""
    loader = DataLoader(torch.randn(60, 3, 8, 8), batch_size=12, shuffle=True)
    nets = [small("scale", 2, windows=2) for _ in range(2)]
    reports = [calibrate(net, loader, keep=keep, seed=4) for net, keep in zip(nets, (1 << 30, 0), strict=True)]
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other)
    assert reports[0].stage("after").output == pytest.approx(reports[1].stage("after").output, rel=1e-5)


@pytest.mark.parametrize("kind", ["list", "function", "loader", "bare", "dict"])
def test_kinds_of_batches(kind: str) -> None:
    batches = images()
    x, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    given = {
        "list": batches,
        "function": lambda: iter(batches),
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), 24),
        "bare": [x for x, _ in batches],
        "dict": [{"x": x, "labels": labels} for x, labels in batches],
    }[kind]
    net, other = small("linear"), small("linear")
    calibration = calibrate(net, given, outputs="logits")
    calibrate(other, batches)
    assert torch.equal(net.coarse.F1.project.conv.weight, other.coarse.F1.project.conv.weight)
    assert (calibration.accuracy is None) == (kind == "bare")


@pytest.mark.parametrize("coarse", ["block", "linear"])
def test_context(coarse: str) -> None:
    """Every layer reads a mask or tables, and so does a copied block."""
    torch.manual_seed(0)
    ids = [torch.randint(11, (6, 9)) for _ in range(3)]
    model = LanguageModel().eval()
    net = pararealize(model, 3, example_inputs=ids[0], coarse=coarse)
    calibration = calibrate(net, ids, steps=20)
    assert calibration.stage("after").output < calibration.stage("before").output
    assert calibration.accuracy is None


def test_devices() -> None:
    net = small("block", devices=["cpu", "cpu"])
    plain = small("block")
    for each in (net, plain):
        calibrate(each, images(), steps=3)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), plain.state_dict().values(), strict=True))


def test_coarse_blocks_that_are_one_module_are_fitted_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(5, 5) for _ in range(6))).double()
    shared = nn.Linear(5, 5, dtype=torch.float64)
    batch = torch.randn(40, 5, dtype=torch.float64)
    net = pararealize(model, 3, example_inputs=batch, coarse=lambda *_: shared, source="stem")
    methods = [fit.method for fit in calibrate(net, [batch]).fits if fit.part.startswith("F")]
    assert methods == ["least squares", "left: shared with one before"]


def test_what_is_frozen_stays() -> None:
    """A linear coarse block of which only the bias may change is trained; an adapter with a frozen bias is left."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(5, 5) for _ in range(6))).double()
    batch = torch.randn(40, 5, dtype=torch.float64)
    net = pararealize(
        model, 2, example_inputs=batch, coarse=lambda *_: nn.Linear(5, 5, dtype=torch.float64), source="stem"
    )
    frozen = [net.get_parameter(name) for name in ("coarse.F1.weight", "adapters.C2.project.bias")]
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = [parameter.clone() for parameter in frozen]
    bias = net.get_parameter("coarse.F1.bias").clone()
    methods = [fit.method for fit in calibrate(net, [batch], steps=5).fits]
    assert methods == ["left: frozen", "distilled"]
    assert all(torch.equal(a, b) for a, b in zip(frozen, before, strict=True))
    assert not torch.equal(net.get_parameter("coarse.F1.bias"), bias)


def test_one_segment_has_nothing_to_fit() -> None:
    calibration = calibrate(small(n=1), images())
    assert calibration.fits == ()
    assert calibration.stage("after").output == 0.0


def test_inside_no_grad_and_autocast() -> None:
    plain, odd = small(), small()
    calibrate(plain, images(), steps=3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        calibrate(odd, images(), steps=3)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), odd.state_dict().values(), strict=True))


def test_refusals() -> None:
    net, batches = small(), images()
    state = copy.deepcopy(net.state_dict())
    x, _ = batches[0]
    with pytest.raises(ExampleError, match="there is no batch; pass some tens"):
        calibrate(net, [])
    with pytest.raises(ExampleError, match="an iterator gives them once; pass a list"):
        calibrate(net, iter(batches))
    with pytest.raises(GuardError, match=r"x.size\(1\) == 3 .*, and was given x \(4, 5, 8, 8\)"):
        calibrate(net, [torch.randn(4, 5, 8, 8)])
    with pytest.raises(ExampleError, match=r"no input 'x', .*pass a dict of its inputs by name \(x\), with its labels"):
        calibrate(net, [{"image": x}])
    with pytest.raises(CalibrationError, match=r"segment 1 .* is not finite in batch 2"):
        calibrate(net, [x, x * float("nan")])
    with pytest.raises(CalibrationError, match="labels go from 0 to 7, and the network tells 3 classes"):
        calibrate(net, [(x, torch.arange(24) % 8)], outputs="logits")
    with pytest.raises(CalibrationError, match="steps is -1; pass 0 or more steps; and ridge is -2"):
        calibrate(net, batches, steps=-1, ridge=-2.0)
    with pytest.raises(ModelError, match="and this is a SmallResNet"):
        calibrate(SmallResNet(), batches)
    with torch.device("meta"):
        meta = pararealize(SmallResNet(), 3, example_inputs=torch.empty(2, 3, 8, 8))
    with pytest.raises(ModelError, match="on the meta device"):
        calibrate(meta, batches)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_a_copy_that_was_made_in_inference_mode_is_refused_until_it_is_copied() -> None:
    net = pararealize(SmallResNet(), 3, example_inputs=torch.randn(2, 3, 8, 8))
    with torch.inference_mode():
        frozen = copy.deepcopy(net)
    batches = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    for work in (calibrate, partial(fine_tune, steps=1)):
        with pytest.raises(ModelError, match=r"made within torch.inference_mode.* calibrate copy.deepcopy\(net\)"):
            work(frozen, batches)
    calibrate(copy.deepcopy(frozen), batches)


def test_a_transformer_with_a_mask() -> None:
    torch.manual_seed(0)
    ids = torch.randint(11, (40, 6))
    labels = torch.randint(3, (40,))
    net = pararealize(MaskedTransformer().eval(), 2, example_inputs=ids, coarse="block")
    calibration = calibrate(net, [(ids, labels)], steps=20)
    assert calibration.stage("after").interfaces[1] < calibration.stage("before").interfaces[1]
    assert calibration.accuracy is calibration.stage("after").agreement is None  # labels at random show no classes
    assert "the labels are not used: its largest number is at the label no more often" in str(calibration)
    assert calibration.outputs == "values"


def test_a_data_set_and_labels_that_a_trained_network_meets() -> None:
    """The largest output of a trained network is at its labels: nobody has to say that it tells classes."""
    net, batches = small("linear"), images()
    with torch.no_grad():
        met = [(x, Interfaces(net).in_sequence(x).output.argmax(1)) for x, _ in batches]
    calibration = calibrate(net, met)
    assert (calibration.outputs, calibration.accuracy) == ("classes", 1.0)
    assert "largest output is at the label in 100 % of the samples" in calibration.why
    data = load("digits", batch_size=60, image_size=8, count=(120, 60))
    torch.manual_seed(0)
    net = pararealize(SmallResNet(classes=10).eval(), 2, example_inputs=data.example(), coarse="linear")
    calibration = calibrate(net, data)
    assert (calibration.held_out, calibration.tested, calibration.outputs) == (True, 60, "classes")


def test_masks_by_name_and_none() -> None:
    _, net = token_net()
    batches = [
        {"ids": b["ids"], "attention_mask": b["attention_mask"], "pad": b["attention_mask"]} for b in padded_batches()
    ]
    found, named, without = (calibrate(copy.deepcopy(net), batches, mask=mask) for mask in ("auto", "pad", None))
    assert found.stages == named.stages
    assert found.stages != without.stages
    with pytest.raises(ExampleError, match="a batch has no mask 'padding'; it has ids"):
        calibrate(net, batches, mask="padding")


def test_padding_of_an_output_with_a_number_a_position_counts_nowhere() -> None:
    """``(batch, length)``: what stands in the padding changes no weight and no figure, to the bit."""

    class Masked(nn.Module):
        """A number a token; where the padding is, the least, as a mask in the head has it."""

        def __init__(self, masks: bool) -> None:
            super().__init__()
            self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(5)))
            self.out, self.masks = nn.Linear(4, 1), masks

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            y = self.out(self.blocks(x)).squeeze(-1)
            return y.masked_fill(attention_mask == 0, -1e9) if self.masks else y

    x, mask = torch.randn(5, 6, 7, 4), (torch.arange(7) < torch.tensor([7, 3, 1, 5, 4, 2])[:, None]).long()
    for masks in (False, True):
        model, states, figures = Masked(masks), [], []
        for padding in (0.0, 30.0):
            filled = torch.where(mask[..., None] != 0, x, padding)
            batches = [{"x": one, "attention_mask": mask} for one in filled]
            net = pararealize(model, 2, windows=2, example_inputs=batches[0], coarse="dense")
            calibration = calibrate(net, batches)
            stages = calibration.stages
            if not masks:
                stages = (*stages, fine_tune(net, batches, steps=2).after)
            figures.append(stages)
            states.append(net.state_dict())
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
        assert figures[0] == figures[1]
        assert figures[0][1].output > 1e-4


def test_labels_of_samples_that_a_mask_excludes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)), nn.Linear(6, 3))
    x, valid = torch.randn(5, 8, 6), torch.arange(8) < 6
    with torch.no_grad():
        batches = [{"input": one, "labels": model(one).argmax(1).where(valid, -100), "valid": valid} for one in x]
    net = pararealize(model, 2, example_inputs=x[0], coarse="linear")
    calibration = calibrate(net, batches, outputs="logits", mask="valid")
    assert calibration.accuracy == 1.0
    assert calibration.stage("after").accuracy == calibration.stage("after").agreement
    assert fine_tune(net, batches, calibration, steps=1, loss="cross_entropy", mask="valid").accuracy == 1.0
