"""Teachers: the original's copy, the model that was converted, another one; statistics that were renewed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pararealize import pararealize
from pararealize.calibration.teacher import Teacher
from pararealize.errors import CalibrationError, ExampleError, ModelError
from tests.tuning_networks import TokenNet, padded_batches, token_net

BATCH = padded_batches(1)[0]


def test_the_original_teaches_and_stays_as_it_was() -> None:
    model, net = token_net()
    teacher = Teacher(net, None, renewed=(), mask="auto")
    with torch.no_grad():
        net.head.weight.add_(1)
        output = model(**BATCH)
    values = teacher(BATCH)
    assert torch.equal(values.output.pooled, output.pooled)
    assert teacher.text == "TokenNet, its original weights"
    torch.testing.assert_close(values.ends[-1], output.hidden)


def test_the_converted_model_gives_its_weights() -> None:
    _, net = token_net()
    torch.manual_seed(9)
    other = TokenNet().eval()
    teacher = Teacher(net, other, renewed=("g2_1",), mask="auto")
    with torch.no_grad():
        assert torch.equal(teacher(BATCH).output.pooled, other(**BATCH).pooled)
    assert teacher.has_ends


def mlp(activation: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(6, 6), activation()))).eval()


@pytest.mark.parametrize("case", ["another activation", "a softmax behind"])
def test_a_model_of_the_same_names_that_does_something_else_teaches_itself(case: str) -> None:
    """The original taught in its place, with its weights."""
    model = mlp(nn.Tanh)
    x = torch.randn(5, 6)
    net = pararealize(model, 2, example_inputs=x, coarse="linear")
    given = mlp(nn.ReLU) if case == "another activation" else nn.Sequential(*mlp(nn.Tanh), nn.Softmax(-1))
    with torch.no_grad():
        for parameter in given.parameters():
            parameter.mul_(1.5)
        wanted, original = given(x), model(x)
    teacher = Teacher(net, given, renewed=(), mask=None)
    assert teacher.settle(iter([x])) is x
    assert torch.equal(teacher(x).output, wanted)
    assert torch.equal(teacher.in_sequence(x).output, original)
    assert torch.equal(teacher.true(x).output, wanted)
    assert (teacher.has_ends, teacher.has_original, teacher.reference) == (False, True, "teacher")


@pytest.mark.parametrize("wrapper", ["", "parallel", "average", "compiled", "double", "bfloat16"])
def test_the_converted_model_teaches_by_its_weights_in_whatever_it_is_wrapped(wrapper: str) -> None:
    _, net = token_net()
    torch.manual_seed(9)
    given: nn.Module = TokenNet().eval()
    if wrapper in ("double", "bfloat16"):
        given = given.to(getattr(torch, wrapper))
    compiled = nn.Module()
    compiled.add_module("_orig_mod", given)
    wrappers = {"parallel": nn.DataParallel, "average": AveragedModel, "compiled": lambda _: compiled}
    teacher = Teacher(net, wrappers.get(wrapper, lambda one: one)(given), renewed=("g2_1",), mask="auto")
    first = {**BATCH, "attention_mask": torch.zeros_like(BATCH["attention_mask"])}
    assert teacher.settle(iter([first, BATCH])) is BATCH
    assert teacher.has_ends
    assert (teacher.text, teacher.reference) == ("TokenNet, given", "original")
    with torch.no_grad():
        torch.testing.assert_close(teacher(BATCH).output.pooled, given.float()(**BATCH).pooled)


def test_other_outputs_are_compared_with_nothing_but_the_original() -> None:
    model, net = token_net()
    teacher = Teacher(net, Other(), renewed=(), mask="auto")
    teacher.settle(iter([BATCH]))
    assert teacher.text == "Other, given; errors are against the original, whose outputs are others"
    with torch.no_grad():
        assert torch.equal(teacher.true(BATCH).output.pooled, model(**BATCH).pooled)
    lost = Teacher(net, Other(), renewed=("g2_1",), mask="auto")
    assert not lost.has_original
    lost.settle(iter([BATCH]))
    with pytest.raises(
        CalibrationError, match=r"renewed in g2_1, .*has other outputs, so that errors are against noth"
    ):
        lost.true(BATCH)
    with pytest.raises(ExampleError, match="there is no test batch"):
        teacher.settle(iter([]))


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.dropout = nn.Parameter(torch.ones(())), nn.Dropout()

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.dropout(ids.float()) * self.scale


def test_another_model_is_called_in_eval_mode() -> None:
    _, net = token_net()
    other = Other()
    teacher = Teacher(net, other, renewed=(), mask="auto")
    values = teacher(BATCH)
    assert torch.equal(values.output, BATCH["ids"].float())
    assert not values.output.requires_grad
    assert other.training
    assert not teacher.has_ends
    with pytest.raises(CalibrationError, match="a Linear, does not take a batch: TypeError"):
        Teacher(net, nn.Linear(2, 2), renewed=(), mask="auto")(BATCH)
    with pytest.raises(ModelError, match="on the meta device"):
        Teacher(net, nn.Linear(2, 2, device="meta"), renewed=(), mask="auto")


def test_a_teacher_that_writes_into_its_inputs_has_copies() -> None:
    class Doubles(Other):
        def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return super().forward(ids.mul_(2), attention_mask)

    batch = {name: value.clone() for name, value in BATCH.items()}
    teacher = Teacher(token_net()[1], Doubles(), renewed=(), mask="auto")
    for _ in range(2):
        assert torch.equal(teacher(batch).output, 2.0 * BATCH["ids"])
    assert torch.equal(batch["ids"], BATCH["ids"])


def test_statistics_that_nobody_knows_any_more() -> None:
    _, net = token_net()
    with pytest.raises(CalibrationError, match=r"renewed in g2_1, so that .*; pass teacher=model"):
        Teacher(net, None, renewed=("g2_1",), mask="auto")
