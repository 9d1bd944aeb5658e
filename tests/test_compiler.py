"""The composition: what users call, and every way in which they can call it wrongly."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pararealize import Plan, capture, find_blocks, pararealize
from pararealize.errors import (
    CoarseError,
    CutError,
    DeviceError,
    ExampleError,
    ModelError,
    PlanError,
    RecordingWarning,
    SourceError,
)
from pararealize.models import resnet20
from tests.models import LanguageModel, MaskedTransformer, Perceptron, SmallResNet, UNet

IMAGES = torch.randn(4, 3, 8, 8)
IDS = torch.randint(0, 11, (4, 5))


def test_a_network_larger_than_the_machine() -> None:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(2**16, 2**16) for _ in range(64)))  # a terabyte
        net = pararealize(model, n=4, example_inputs=torch.empty(2, 2**16), coarse="linear")
    assert all(parameter.is_meta for parameter in net.parameters())
    assert net(torch.empty(3, 2**16, device="meta")).shape == (3, 2**16)


def test_one_seed_gives_the_same_bits_and_leaves_the_callers_state() -> None:
    model = SmallResNet()
    state = torch.get_rng_state()
    first, second, other = (pararealize(model, n=3, example_inputs=IMAGES, seed=s) for s in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("cost", ["flops", "seconds"])
def test_cuts_by_counted_and_measured_cost(cost: str) -> None:
    net = pararealize(resnet20(), n=3, example_inputs=torch.randn(2, 3, 32, 32), cost=cost)  # type: ignore[arg-type]
    assert net.plan.unit == cost
    assert [segment.j for segment in net.plan.segments] == [1, 2, 3]


def test_cuts_by_name() -> None:
    net = pararealize(SmallResNet(), n=3, example_inputs=IMAGES, cuts=["layer1.2", "layer2.1"])
    assert [segment.first_block for segment in net.plan.segments] == ["layer1.0", "layer1.2", "layer2.1"]
    with pytest.raises(CutError, match=r"layer1\.9.*layer1\.0"):
        pararealize(SmallResNet(), n=2, example_inputs=IMAGES, cuts=["layer1.9"])


def test_sources() -> None:
    from_stem = pararealize(SmallResNet(), n=2, example_inputs=IMAGES, source="stem", cuts=["layer1.1"])
    assert "self.adapters.C2(x_1)" in from_stem.code
    x = from_stem.stem(IMAGES)
    assert torch.equal(from_stem.adapters["C2"](x), x), "spaces agree: the adapter starts as the identity"
    assert pararealize(MaskedTransformer(), n=2, example_inputs=IDS).plan.source == "stem"
    with pytest.raises(SourceError, match=r'"input".*"stem"'):
        pararealize(MaskedTransformer(), n=2, example_inputs=IDS, source="input")


def test_adapters_read_what_sequential_blocks_give() -> None:
    """Slower than without, for the same n; and the plan alone makes the same network again."""
    model = SmallResNet().eval()
    net = pararealize(model, n=3, example_inputs=IMAGES, sequential=2, coarse="linear").eval()
    assert [window.n for window in net.plan.windows] == [1, 3]
    assert (net.plan.source, net.plan.segments[1].first_block) == ("stem", "layer1.2")
    x = model.layer1[:2](model.conv(IMAGES))
    assert torch.equal(net.segments["g1_1"](net.stem(IMAGES)), x)
    y_1, x_2 = net.segments["g2_1"](x), net.adapters["C2_2"](x)
    assert torch.equal(y_1, model.layer1[2](x.clone()))
    assert x_2.shape == y_1.shape
    again = pararealize(model, example_inputs=IMAGES, plan=Plan.from_json(net.plan.to_json())).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(IMAGES), net(IMAGES))
    flat = pararealize(model, n=3, example_inputs=IMAGES, source="stem", coarse="linear")
    assert net.plan.virtual_speedup < flat.plan.virtual_speedup


def test_sequential_blocks_and_windows_that_cannot_be() -> None:
    plan = pararealize(SmallResNet(), n=2, example_inputs=IMAGES, sequential=2).plan
    for options in ({"windows": 3}, {"sequential": 3}, {"windows": ["layer2.0"]}):
        with pytest.raises(PlanError, match=r"(windows|sequential) is .*, and the plan has other windows: .*layer1\.0"):
            pararealize(SmallResNet(), example_inputs=IMAGES, plan=plan, **options)
    for sequential in (1, ["layer1.0"], ["layer1.0", "layer2.0"], []):
        with pytest.raises(PlanError, match=r"sequential is .*, and the plan has other windows: .*layer1\.0"):
            pararealize(SmallResNet(), example_inputs=IMAGES, plan=plan, sequential=sequential)
    with pytest.raises(SourceError, match="contradict each other"):
        pararealize(SmallResNet(), n=2, example_inputs=IMAGES, source="input", sequential=1)
    with pytest.raises(PlanError, match="6 blocks, 2 of which are sequential, so that the longest window has 4"):
        pararealize(SmallResNet(), n=5, example_inputs=IMAGES, sequential=2)
    with pytest.raises(
        CutError, match=r"'layer1\.1' stand within blocks that stay as they are, layer1\.0 to layer1\.1"
    ):
        pararealize(SmallResNet(), n=2, example_inputs=IMAGES, cuts=["layer1.1"], sequential=2)
    with pytest.raises(PlanError, match="the first window has no adapters, and they read the input"):
        Plan.from_json(plan.to_json().replace('"source": "stem"', '"source": "input"'))


def test_a_callable_makes_coarse_blocks() -> None:
    seen = []

    def coarse(segment: nn.Module, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> nn.Module:
        seen.append((type(segment).__name__, x_shape, y_shape))
        return nn.Conv2d(x_shape[0], y_shape[0], 1, stride=x_shape[1] // y_shape[1])

    net = pararealize(SmallResNet(), n=2, example_inputs=IMAGES, coarse=coarse, cuts=["layer2.0"])
    assert seen[-1][1:] == ((4, 8, 8), (8, 4, 4))
    assert isinstance(net.coarse["F1"], nn.Conv2d)
    assert net(IMAGES).shape == (4, 3)
    with pytest.raises(CoarseError, match=r"F\^1 .* maps .* but X_2 is 8×4×4"):
        pararealize(SmallResNet(), n=2, example_inputs=IMAGES, coarse=lambda *_: nn.Identity(), cuts=["layer2.0"])


def test_the_paper_coarse_block_falls_back_without_convolutions() -> None:
    net = pararealize(MaskedTransformer(), n=2, example_inputs=IDS)
    assert net.plan.coarse_blocks[0].kind == "block"
    assert any("block" in note for note in net.plan.notes)


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "3", None])
def test_n_that_is_no_number_of_segments(n: object) -> None:
    with pytest.raises(PlanError, match=r"n is .*pass an integer from 1"):
        pararealize(SmallResNet(), n=n, example_inputs=IMAGES)  # type: ignore[arg-type]


def test_n_beyond_the_blocks_says_what_is_alive_where() -> None:
    with pytest.raises(PlanError, match=r"n = 7 .* SmallResNet has 6 blocks .*activations are alive: .*from 1 to 6"):
        pararealize(SmallResNet(), n=7, example_inputs=IMAGES)
    with pytest.raises(PlanError, match=r"UNet has 4 blocks .*activations are alive: .*relu"):
        pararealize(UNet(), n=5, example_inputs=IMAGES)


def test_all_faults_that_need_no_model_are_reported_at_once() -> None:
    with pytest.raises(
        PlanError,
        match=r"n is 0.*source is 'sideways'.*granularity is 'fine'.*cost is 'euros'.*papre.*paper.*devices is \[\]",
    ) as e:
        pararealize(
            SmallResNet(),
            n=0,
            source="sideways",
            cost="euros",
            coarse="papre",
            granularity="fine",
            devices=[],  # type: ignore[arg-type]
        )
    assert len(str(e.value)) < 800


@pytest.mark.parametrize("device", ["cuda:99", "warp:1", 17.5])
def test_unknown_devices(device: object) -> None:
    with pytest.raises(DeviceError, match=r"is not there: this machine has|is unknown: "):
        pararealize(SmallResNet(), n=2, example_inputs=IMAGES, devices=["cpu", device])  # type: ignore[list-item]


def test_a_plan_that_does_not_pay_says_so() -> None:
    notes = pararealize(SmallResNet(), n=6, example_inputs=IMAGES).plan.notes
    assert any("does not pay: its longest path is" in note for note in notes)
    assert not pararealize(SmallResNet(), n=2, example_inputs=IMAGES, coarse="linear").plan.notes


def test_other_bad_input() -> None:
    with pytest.raises(CoarseError, match=r"papper.*paper"):
        pararealize(SmallResNet(), n=2, example_inputs=IMAGES, coarse="papper")
    with pytest.raises(CutError, match=r"cuts.*'coast'"):
        pararealize(SmallResNet(), n=2, example_inputs=IMAGES, cuts="coast")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="has no parameters"):
        pararealize(nn.Sequential(nn.ReLU()), n=1, example_inputs=IMAGES)
    with pytest.raises(ExampleError, match="does not accept"):
        pararealize(SmallResNet(), n=2, example_inputs=torch.randn(4, 5, 8, 8))
    model = SmallResNet()
    model.kept = model.fc.weight * 2  # type: ignore[assignment]
    with pytest.raises(ModelError, match="cannot be copied"):
        pararealize(model, n=2, example_inputs=IMAGES)


def test_plans_of_another_model_or_n() -> None:
    plan = pararealize(SmallResNet(), n=2, example_inputs=IMAGES).plan
    with pytest.raises(PlanError, match="n is 3 and the plan is for 2"):
        pararealize(SmallResNet(), n=3, example_inputs=IMAGES, plan=plan)
    with pytest.raises(PlanError, match=r"another model|fingerprint"):
        pararealize(SmallResNet(width=6), example_inputs=IMAGES, plan=plan)
    with pytest.raises(PlanError, match="version"):
        Plan.from_json(plan.to_json().replace('"version": 2', '"version": 99'))


def test_the_users_example_may_be_anything_that_forward_takes() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Perceptron()

        def forward(self, inputs: Tensor, *, scale: float = 1.0, mask: Tensor | None = None) -> dict[str, Tensor]:
            y = self.net(inputs if mask is None else inputs * mask)
            return {"logits": y * scale}

    x, mask = torch.randn(3, 8), torch.ones(3, 8)
    for example in (x, (x,), {"inputs": x, "mask": mask}, {"inputs": x, "scale": 2.0}):
        net = pararealize(Named(), n=1, example_inputs=example)
        given = example if isinstance(example, dict) else {"inputs": x}
        assert torch.equal(net(**given)["logits"], Named.forward(_like(net), **given)["logits"])


def _like(net: nn.Module) -> nn.Module:
    class Original:
        pass

    original = Original()
    original.net = Perceptron()  # type: ignore[attr-defined]
    original.net.load_state_dict({k.removeprefix("net."): v for k, v in net.state_dict().items()})  # type: ignore[attr-defined]
    return original  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "mobilenet_v3_small"])
def test_networks_of_torchvision(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    net = pararealize(model, n=4, example_inputs=torch.empty(2, 3, 224, 224, device="meta"))
    assert net(torch.empty(3, 3, 224, 224, device="meta")).shape == (3, 1000)


@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs a GPU")
def test_on_a_gpu() -> None:
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    net = pararealize(SmallResNet(), n=3, example_inputs=IMAGES, devices=devices)
    net(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_segments_may_begin_within_layers() -> None:
    """With the finest blocks, at other sizes too; a plan says which blocks it is of, and finds them again."""
    torch.manual_seed(0)
    model, ids = LanguageModel(3).eval(), torch.randint(0, 11, (2, 7))
    net = pararealize(model, 3, example_inputs=ids, coarse="linear", granularity="finest", sequential=1).eval()
    assert [segment.first_block for segment in net.plan.segments] == [
        "layers.0.qkv", "layers.0.mlp", "layers.1.mlp", "layers.2.mlp",
    ]  # fmt: skip
    assert "finest blocks" in str(net.plan)
    again = pararealize(model, plan=Plan.from_json(net.plan.to_json()), example_inputs=ids, seed=0).eval()
    exact = pararealize(model, 1, windows=6, example_inputs=ids, granularity="finest").eval()
    for length in (7, 4):
        x = torch.randint(0, 11, (3, length))
        assert torch.equal(net(x)["logits"], again(x)["logits"])
        assert torch.equal(net.iterate(x, 2)["logits"], model(x)["logits"])
        assert torch.equal(exact(x)["logits"], model(x)["logits"])
    chain = find_blocks(capture(model, ids))
    with pytest.raises(PlanError, match="the finest ones, and here they are the repeated ones: granularity='finest'"):
        net.plan.check(chain)
    with pytest.raises(PlanError, match="granularity is 'repeated', and the plan says 'finest'"):
        pararealize(model, plan=net.plan, example_inputs=ids, granularity="repeated")


class LongerTwice(LanguageModel):
    """Sequences that are longer than five have other logits, so that others are recorded anew."""

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        logits = super().forward(ids)["logits"]
        return {"logits": 2 * logits if ids.size(1) > 5 else logits}


def test_what_is_recorded_anew_is_cut_within_layers_too() -> None:
    torch.manual_seed(0)
    model, ids = LongerTwice(3).eval(), torch.randint(0, 11, (2, 7))
    net = pararealize(model, 1, windows=6, example_inputs=ids, granularity="finest").eval()
    shorter = ids[:, :4]
    with pytest.warns(RecordingWarning, match="recorded anew"):
        logits = net(shorter)["logits"]
    assert torch.equal(logits, model(shorter)["logits"])
    assert torch.equal(net(ids)["logits"], model(ids)["logits"])
