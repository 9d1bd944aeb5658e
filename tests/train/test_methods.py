"""Methods by name: what is trained, and what is refused."""

import pytest
import torch

from pararealize import PararealModule
from pararealize.errors import DeviceError, DistributedError, PlanError
from pararealize.train.methods import METHODS, Built, Options, build
from tests.training import WIDTH, chain


def options(**values):
    return Options(example_inputs=torch.zeros(2, WIDTH), **values)


def test_serial_trains_the_model_itself():
    model = chain()
    assert build("serial", model, options()).net is model
    assert build("serial", model, options(devices=["cpu"])).net is model


def test_parareal_converts():
    net = build("parareal", chain(), options(n=3, coarse="linear", source="stem", cuts=["8", "16"])).net
    assert isinstance(net, PararealModule)
    assert [segment.first_block for segment in net.plan.segments][1:] == ["8", "16"]
    assert [row.kind for row in net.plan.coarse_blocks] == ["linear", "linear"]
    again = build("parareal", chain(), options(plan=net.plan, coarse="linear")).net
    assert again.plan == net.plan
    windows = build("parareal", chain(), options(n=2, coarse="linear", windows=2, sequential=3)).net.plan.windows
    assert [window.n for window in windows] == [1, 1, 2]


def test_seeds_draw_what_is_added():
    weights = [
        build("parareal", chain(), options(n=3, coarse="paper", seed=seed)).net.get_parameter(name)
        for seed in (0, 0, 1)
        for name in [_first("coarse.")]
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def _first(prefix):
    net = build("parareal", chain(), options(n=3, coarse="paper")).net
    return next(name for name, p in net.named_parameters() if name.startswith(prefix) and p.ndim > 1)


class Mesh:
    def size(self):
        return 2


@pytest.mark.parametrize("method, values, error, told", [
    ("euler", {}, PlanError, "no method is called 'euler'; there are serial, parareal"),
    ("parareal", {}, PlanError, r"needs n, the number of segments \(--n 3\)"),
    ("serial", {"mesh": Mesh()}, DistributedError, "in one process, and here are 2"),
    ("serial", {"devices": ["cpu", "cpu"]}, DeviceError, r"one device, and 2 were named \(cpu, cpu\)"),
    ("serial", {"devices": ["gpu"]}, DeviceError, "gpu"),
])  # fmt: skip
def test_refusals(method, values, error, told):
    with pytest.raises(error, match=told):
        build(method, chain(), options(**values))


def test_another_method_is_one_more_row(monkeypatch):
    def own_step(x, /, **_):
        return x

    monkeypatch.setitem(
        METHODS, "mine", lambda model, given: Built(net=model, step=own_step if given.more["k"] else None)
    )
    assert build("mine", chain(), options(more={"k": 2})).step is own_step
