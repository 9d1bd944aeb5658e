"""The tables of rules: what they call pointwise is, names are names of something, and nothing has two rules."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from pararealize.analysis.fields import rules
from pararealize.analysis.fields.rules import MODULES, NO_VALUES, OPERATIONS, POINTWISE_CLASSES
from pararealize.analysis.fields.rules_shape import pointwise

ELSEWHERE = {  # the recorder's own, and those of timm, of torch.linalg and of torchvision's networks
    "after", "drop_path", "drop_block_2d", "linalg_norm", "linalg_vector_norm",
    "shifted_window_attention",
}  # fmt: skip


def functions_called(name):
    """Every function of that name, or of that name with underscores, as in ``__and__``."""
    homes = (torch, F, torch.Tensor, operator, torchvision.ops, torch.fft, torch.linalg)
    spellings = (name, f"{name}_", f"_{name}", f"__{name}__")
    return [getattr(home, spelling) for home in homes for spelling in spellings if hasattr(home, spelling)]


def moved_by_the_middle(function, *inputs):
    """The places of a map that change when its middle does; ``None`` where the function takes other inputs."""
    extent = inputs[0].shape[2:]
    middle = tuple(size // 2 for size in extent)
    changed = [value.clone() for value in inputs]
    for value in changed:
        value[:, :, *middle] += 1.5
    results = []
    for values in (inputs, changed):
        torch.manual_seed(3)
        try:
            results.append(function(*(value.clone() for value in values)))
        except (TypeError, RuntimeError, ValueError, AttributeError):
            return None
    if not all(isinstance(y, torch.Tensor) and y.shape[2:] == extent for y in results):
        return None
    same = torch.isclose(*results, rtol=0, atol=0, equal_nan=True)
    return {"the middle" if place == list(middle) else "elsewhere" for place in (~same).nonzero()[:, 2:].tolist()}


def test_functions_called_pointwise_are():
    x, y = torch.rand(2, 4, 5, 6) + 0.2, torch.rand(2, 4, 5, 6) + 0.2
    moved = {}
    for name in [name for name, rule in OPERATIONS.items() if rule is pointwise]:
        for function in functions_called(name):
            for inputs in ((x,), (x, y), (x, y, y)):
                moved.setdefault(name, set()).update(moved_by_the_middle(function, *inputs) or ())
    assert [name for name, places in moved.items() if "elsewhere" in places] == []
    assert sum("the middle" in places for places in moved.values()) > 80


EXTENTS = {1: (30,), 2: (5, 6), 3: (3, 5, 2)}
ARGUMENTS = {"SyncBatchNorm": (4,), "LocalResponseNorm": (2,), "ChannelShuffle": (2,), "Threshold": (0.5, 0.0)}


@pytest.mark.parametrize(
    "kind", [kind for kind, rule in MODULES.items() if rule is pointwise], ids=lambda kind: kind.__name__
)
def test_modules_called_pointwise_are(kind):
    name = kind.__name__
    axes = next((int(digit) for digit in name if digit in "13"), 2)
    module = kind(*((4,) if name.startswith("BatchNorm") else ARGUMENTS.get(name, ()))).eval()
    x = torch.linspace(-3, 3, 8 * 30).view(2, 4, *EXTENTS[axes])
    assert moved_by_the_middle(module, x) == {"the middle"}


def test_names_are_names_of_something():
    assert {name for name in (*OPERATIONS, *NO_VALUES) if not functions_called(name)} == ELSEWHERE


def test_what_reads_no_values_gives_the_same_for_other_values():
    for name in NO_VALUES - {"empty_like", "new_empty"}:  # whose values are anyone's
        function = next(iter(functions_called(name)))
        size = ((4, 5, 6),) if name.startswith("new_") else ()
        filled = (7.0,) if "full" in name else ()
        results = []
        for x in (torch.rand(2, 3), torch.rand(2, 3)):
            torch.manual_seed(1)
            results.append(function(x, *size, *filled))
        assert torch.equal(*results), name


def test_classes_named_pointwise_are_of_libraries_that_have_them():
    homes = (nn, torchvision.ops, torchvision.ops.misc, pytest.importorskip("timm").layers)
    assert [name for name in POINTWISE_CLASSES if not any(hasattr(home, name) for home in homes)] == []


def test_two_rules_for_one_key_are_refused():
    with pytest.raises(AssertionError, match="add has two receptive-field rules"):
        rules._table([(pointwise, ["add", "mul"]), (pointwise, ["add"])])
