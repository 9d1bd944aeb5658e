"""A dry run gives the gradients of the module itself, and touches nothing of it."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, fx, nn

from pararealize import capture, count_costs, find_blocks, measure_costs, pararealize
from pararealize.analysis.dry_run import DryRun, named_tensors, stand_in_inputs, with_gradient
from pararealize.analysis.inner_look import look_inside
from pararealize.analysis.operations import list_chain_operations


class Tied(nn.Module):
    """A parameter under two names, one that is frozen, running statistics, and a change in place of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor, scale: float) -> tuple[Tensor, Tensor, int]:
        x.mul_(scale)
        return self.norm(self.second(torch.tanh(self.first(x)))), x.detach(), 3


def clone(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def test_gradients_are_those_of_the_module_and_it_stays_as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = Tied(), torch.randn(4, 3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    dry_run = DryRun(module, [with_gradient(x.clone(), True), 2.0], clone)
    taken: list[tuple[Tensor | None, ...]] = []
    grad = torch.autograd.grad

    def taking(*args: object, **kwargs: object) -> tuple[Tensor | None, ...]:
        taken.append(grad(*args, **kwargs))  # type: ignore[arg-type]
        return taken[-1]

    monkeypatch.setattr(torch.autograd, "grad", taking)
    for _ in range(2):  # the second time, on inputs that the first has not changed
        dry_run.reset()
        dry_run.backward(dry_run.forward())
    monkeypatch.undo()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not {id(part) for part in dry_run.module.modules()} & {id(part) for part in module.modules()}
    given = x.clone().requires_grad_()
    output, _, _ = module(given * 1, 2.0)
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(output, [*wanted, given], torch.ones_like(output))
    for gradients in taken:
        assert len(gradients) == len(expected), "the frozen bias has none, and the tied weight has one"
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, expected, strict=True) if a is not None)
        assert all(gradient is not None for gradient in gradients)


def test_running_statistics_move_in_the_stand_ins_alone() -> None:
    module = Tied()
    dry_run = DryRun(module, [torch.ones(4, 3), 1.0], clone)
    dry_run.forward()
    assert int(dry_run.tensors["norm.num_batches_tracked"]) == 1
    assert int(module.norm.num_batches_tracked) == 0  # type: ignore[arg-type]


class Keeping(nn.Module):
    """A block that keeps a value in an attribute, others in a list, a count, and a lock, which nothing can copy."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.last: Tensor | None = None
        self.seen: list[Tensor] = []
        self.calls = {"forward": 0}
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(x)
        if self.last is not None:
            x = x + self.last
        self.last = x.detach()
        self.seen.append(x.detach().mean())
        self.calls["forward"] += 1
        return x


@pytest.mark.parametrize("kind", ["flops", "seconds", "operations", "inner look", "dry run"])
def test_what_a_module_keeps_in_python_stays_as_found(kind: str) -> None:
    model = nn.Sequential(*(Keeping() for _ in range(3)))
    if kind == "dry run":
        DryRun(model[0], [torch.ones(2, 3)], clone).forward()
    else:
        chain = find_blocks(capture(model, torch.ones(2, 3)))
        assert len(chain.blocks) == 3
        {
            "flops": count_costs,
            "seconds": lambda chain: measure_costs(chain, repeats=1, warmup=0),
            "operations": list_chain_operations,
            "inner look": lambda chain: look_inside(chain, chain.blocks[0]),
        }[kind](chain)
    for block in model:
        assert (block.last, block.seen, block.calls) == (None, [], {"forward": 0})


def test_a_conversion_has_no_fake_tensor_of_what_was_tried_out() -> None:
    """Coarse blocks that are copies of blocks would keep one as a value to be read."""
    model = nn.Sequential(*(Keeping() for _ in range(4)))
    for block in model:
        del block.lock
    x = torch.ones(2, 3)
    net = pararealize(model, n=2, example_inputs=x, coarse="block")
    kept = [value for module in net.modules() for value in (vars(module).get("last"), *vars(module).get("seen", ()))]
    assert [value for value in kept if value is not None] == []
    assert type(net(x)) is Tensor


def test_one_tensor_under_two_names_has_one_stand_in() -> None:
    module = Tied()
    made: list[Tensor] = []

    def stand_in(tensor: Tensor) -> Tensor:
        made.append(tensor)
        return tensor.clone()

    dry_run = DryRun(module, [], stand_in)
    assert len(made) == len({id(tensor) for _, tensor in named_tensors(module)}) == 8
    assert dry_run.tensors["first.weight"] is dry_run.tensors["second.weight"]
    assert dict(named_tensors(module)).keys() == dry_run.tensors.keys() == module.state_dict().keys()
    assert not dry_run.tensors["second.bias"].requires_grad
    assert dry_run.tensors["first.bias"].requires_grad
    assert not dry_run.tensors["norm.running_mean"].requires_grad


def test_what_no_gradient_flows_through_is_run_forward_alone() -> None:
    dry_run = DryRun(nn.Linear(3, 3).requires_grad_(False), [torch.ones(2, 3)], clone)
    outputs = dry_run.forward()
    assert outputs == []
    dry_run.backward(outputs)


def test_inputs_of_a_piece() -> None:
    graph = fx.Graph()
    x, mask, table, _, flag = (graph.placeholder(name) for name in ("x", "mask", "table", "free", "flag"))
    flag.args = (True,)
    x.meta.update(val=torch.ones(2, 3))
    mask.meta.update(val=torch.ones(2, dtype=torch.int64), trainable=True)
    table.meta.update(val=(torch.ones(3), torch.ones(4)), trainable=True)
    graph.output(x)
    piece = fx.GraphModule(nn.Module(), graph)
    seen: list[torch.Size] = []

    def stand_in(tensor: Tensor) -> Tensor:
        seen.append(tensor.shape)
        return tensor.clone()

    activation, numbers, pair, missing, given = stand_in_inputs(piece, stand_in, first=False)
    assert seen == [(2, 3), (2,), (3,), (4,)]
    assert (activation.requires_grad, numbers.requires_grad) == (True, False)
    assert [part.requires_grad for part in pair] == [True, True]
    assert (given, missing) == (True, None)
    assert [value.requires_grad for value in stand_in_inputs(piece, stand_in, first=True)[:2]] == [False, False]
    assert stand_in_inputs(piece, stand_in, first=True)[2][0].requires_grad
