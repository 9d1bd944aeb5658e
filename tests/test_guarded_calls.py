"""Every runtime gives the original's output within its guards and beyond them, or says why it cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from pararealize import Plan, layer_parallel, pararealize, restack, run_local
from pararealize.errors import ExampleError, GuardError, PararealizeError, PlanError
from tests.ranks import on_ranks

pytestmark = pytest.mark.filterwarnings("ignore::pararealize.errors.RecordingWarning")


class AnyRank(nn.Module):
    """Residual blocks for vectors and for sequences of them; how many dimensions there are, decides of a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh()) for _ in range(4))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x) / x.dim()
        return self.head(x) * scale


class Images(nn.Module):
    """A fully convolutional network whose mean is taken by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        strides = [1, 1, 2, 1, 1]
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, stride=s, padding=1) for s in strides)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            y = torch.tanh(block(x))
            x = x + y if y.shape == x.shape else y
        height, width = x.shape[2:]
        return self.head(x.sum((2, 3)) / (height * width))


class Batches(nn.Module):
    """A rule for large batches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        few = min(x.shape[0], 4)
        x = self.stem(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        x = self.head(x)
        return x - x[:few].mean(0) if x.shape[0] > 2 else x


class Positions(nn.Module):
    """A table of positions, and a mean over tokens by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 8), nn.Embedding(16, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh()) for _ in range(4))
        self.head = nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.sum(1) / x.shape[1])


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 11, shape)


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor, list[Tensor]]] = {
    "ranks": (
        AnyRank,
        torch.randn(4, 6),
        [torch.randn(1, 6), torch.randn(3, 5, 6), torch.randn(7, 6), torch.randn(1, 2, 6)],
    ),
    "images": (
        Images,
        torch.randn(2, 3, 16, 16),
        [torch.randn(1, 3, 16, 16), torch.randn(3, 3, 24, 8), torch.randn(2, 3, 17, 15), torch.randn(2, 3, 32, 32)],
    ),
    "batches": (Batches, torch.randn(3, 6), [torch.randn(n, 6) for n in (1, 2, 7, 3, 4)]),
    "positions": (Positions, ids(2, 8), [ids(1, 8), ids(3, 5), ids(2, 16), ids(1, 1)]),
}


def original(model: nn.Module, example: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every way to run a network in which it computes what the original does."""
    one = pararealize(model, n=1, example_inputs=example)
    three = pararealize(model, n=3, example_inputs=example, coarse="linear")
    layers = layer_parallel(model, coarsening=2, example_inputs=example)
    return {
        "one segment": one,
        "iterations": lambda x: three.iterate(x, 2),
        "a copy": copy.deepcopy(one),
        "in this process": run_local(one),
        "euler": restack(model, "euler", example_inputs=example),
        "layers in series": lambda x: _serially(layers, x),
    }


def _serially(layers: Any, x: Tensor) -> Tensor:
    with layers.serially():
        y: Tensor = layers(x)
    return y


@pytest.mark.parametrize("name", MODELS)
def test_other_sizes_are_right_in_every_runtime(name: str) -> None:
    make, example, others = MODELS[name]
    model = make().eval()
    with torch.no_grad():
        for way, run in original(model, example).items():
            for x in (example, *others, example, *others[::-1]):
                torch.testing.assert_close(run(x), model(x), msg=lambda text, w=way, s=x.shape: f"{w} {s}: {text}")


def test_types_change() -> None:
    model, x = AnyRank().eval(), torch.randn(4, 6)
    net = pararealize(model, n=3, example_inputs=x, coarse="linear")
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        net.to(dtype), model.to(dtype)
        for y in (x.to(dtype), torch.randn(2, 3, 6, dtype=dtype)):
            torch.testing.assert_close(net.iterate(y, 2), model(y))
        local = run_local(net, stack=False)
        assert local(x.to(dtype)).dtype == dtype


WRONG: list[tuple[Any, ...]] = [
    (torch.randn(4, 7),),
    (torch.randint(0, 5, (4, 6)),),
    (torch.tensor(1.0),),
    (None,),
    ("text",),
    ([1.0],),
    (),
    (torch.randn(4, 6), "much"),
    (torch.randn(4, 6), None),
    (torch.randn(4, 6), 1.0, 2.0),
    (torch.randn(4, 6, device="meta"),),
]


@pytest.mark.parametrize("args", WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_what_the_original_refuses_is_refused_in_words(
    args: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    model, example = AnyRank().eval(), torch.randn(4, 6)
    three = pararealize(model, n=3, example_inputs=example)
    ways = [three, run_local(three), restack(model, "euler", example_inputs=example)]
    ways.append(layer_parallel(model, coarsening=2, example_inputs=example))
    for way in ways:
        with pytest.raises((PararealizeError, RuntimeError, NotImplementedError)):
            way(*args)
    assert "Traceback" not in capsys.readouterr().err


def at_other_sizes(ranks: int) -> list[str]:
    """What stages say of calls within and outside of their guards, on every rank."""
    torch.manual_seed(0)
    model, example = AnyRank(), torch.randn(4, 6)
    mesh = init_device_mesh("cpu", (ranks,))
    net = pararealize(model, n=3, example_inputs=example).to(torch.float64)
    stages = [
        net.distribute(mesh),
        layer_parallel(model.double(), coarsening=2, example_inputs=example.double(), mesh=mesh),
    ]
    said = []
    for stage in stages:
        for x in (example.double(), torch.randn(7, 6).double(), torch.randn(1, 6).double()):
            y = stage(x, everywhere=True)
            said.append(str(tuple(y.shape)))
        if stage is stages[0]:
            torch.testing.assert_close(y, net(x))
        for args in ((torch.randn(3, 5, 6).double(),), (example.double(), 2.0), (torch.zeros(4, 6, dtype=torch.long),)):
            try:
                stage(*args)
            except (GuardError, ExampleError) as error:
                said.append(type(error).__name__)
        said.append(str(tuple(stage(example.double(), everywhere=True).shape)))  # no message went astray
    dist.barrier()
    return said


def test_ranks_refuse_alike_before_any_message() -> None:
    each = ["(4, 2)", "(7, 2)", "(1, 2)", *["RefusedCallError"] * 3, "(4, 2)"]
    assert on_ranks(2, at_other_sizes, 2) == [each * 2] * 2


def test_a_plan_is_taken_at_another_size() -> None:
    make, example, others = MODELS["images"]
    model = make().eval()
    first = pararealize(model, n=3, example_inputs=example, coarse="paper")
    plan = Plan.from_json(first.plan.to_json())
    for x in others:
        net = pararealize(model, plan=plan, example_inputs=x)
        torch.testing.assert_close(net.iterate(x, 2), model(x))
        assert net(x).shape == model(x).shape
        net.load_state_dict(first.state_dict())  # the same parameters
    wide = nn.Sequential(*(nn.Linear(6, 6) for _ in range(5)))
    with pytest.raises(PlanError, match="another network"):
        pararealize(wide, plan=plan, example_inputs=torch.randn(2, 6))


class Watch:
    """Somebody who looks at what a network gives, and knows the network."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.calls = net, []
        net.register_forward_hook(self.see)

    def see(self, module: nn.Module, *_: Any) -> None:
        self.calls.append(module)


def test_hooks_go_with_a_deep_copy() -> None:
    model, example = AnyRank(), torch.randn(4, 6)
    ways = [
        pararealize(model, n=2, example_inputs=example),
        layer_parallel(model, coarsening=2, example_inputs=example),
    ]
    ways += [restack(model, "euler", example_inputs=example), run_local(copy.deepcopy(ways[0]))]
    for way in ways:
        watch = Watch(way)
        twin = copy.deepcopy(way)
        twin(example)
        (hook,) = twin._forward_hooks.values()
        assert (hook.__self__.net is twin, hook.__self__.calls, watch.calls) == (True, [twin], [])
