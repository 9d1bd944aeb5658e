"""Guards print as Python, are checked by what a graph calls, and name themselves where inputs break them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import fx, nn

from pararealize.errors import GuardError
from pararealize.tracing.guards import Guard, Guards, Input, check_guards, write_guards

RULES = Guards(
    inputs=(Input("x", (2, 3), torch.float32, (0, 1)), Input("mask", (2,), torch.bool, (0,)), Input("flag")),
    conditions=(
        Guard("x.dim() == 2"),
        Guard("x.size(0) <= 4", "model.py:31: if x.shape[0] > 4:"),
        Guard("x.size(0) == mask.size(0)"),
        Guard("(x.size(1) + 1) % 4 == 0"),
    ),
)


@pytest.mark.parametrize(
    "x, mask, broken",
    [
        ((4, 7), (4,), []),
        ((5, 3), (5,), ["x.size(0) <= 4"]),
        ((5, 3), (4,), ["x.size(0) <= 4", "x.size(0) == mask.size(0)"]),
        ((4,), (4,), ["x.dim() == 2", "(x.size(1) + 1) % 4 == 0"]),
        ((2, 3), None, ["x.size(0) == mask.size(0)"]),
    ],
)
def test_what_is_broken_is_named(x: tuple[int, ...], mask: tuple[int, ...] | None, broken: list[str]) -> None:
    values = {"x": torch.zeros(x), "mask": None if mask is None else torch.zeros(mask), "flag": True}
    assert [guard.condition for guard in RULES.broken(values)] == broken


def test_an_error_says_the_condition_the_line_and_the_sizes() -> None:
    with pytest.raises(GuardError, match=r"x.size\(0\) <= 4 \(model.py:31: if x.shape\[0\] > 4:\).*x \(5, 3\) float32"):
        RULES.check({"x": torch.zeros(5, 3), "mask": torch.zeros(5), "flag": None})


def test_guards_and_their_errors_are_plain_data() -> None:
    assert pickle.loads(pickle.dumps(RULES)) == copy.deepcopy(RULES) == RULES
    assert [Guard.read(str(guard)) for guard in RULES] == list(RULES)
    error = pickle.loads(pickle.dumps(GuardError("no", ("x.dim() == 2",))))
    assert (str(error), error.guards) == ("no", ("x.dim() == 2",))


def guarded_graph() -> fx.GraphModule:
    graph = fx.Graph()
    nodes = {name: graph.placeholder(name) for name in RULES.names}
    write_guards(graph, nodes, RULES)
    graph.output(graph.call_function(torch.relu, (nodes["x"],)))
    return fx.GraphModule(nn.Module(), graph)


def test_a_graph_checks_them_and_says_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    net = guarded_graph()
    assert "'x.size(0) <= 4  # model.py:31: if x.shape[0] > 4:'" in net.code
    net(torch.zeros(4, 3), torch.zeros(4), None)
    with pytest.raises(GuardError, match=r"x\.size"):
        net(torch.zeros(5, 3), torch.zeros(5), None)
    assert capsys.readouterr().err == ""  # fx prints where an error passed through a graph's own code


def test_a_guarded_graph_compiles_whole() -> None:
    compiled = torch.compile(guarded_graph(), backend="eager", fullgraph=True, dynamic=True)
    x = torch.randn(4, 3)
    torch.testing.assert_close(compiled(x, torch.zeros(4), None), x.relu())


def test_other_shapes_are_within_the_guards() -> None:
    shapes = RULES.other_shapes()
    assert {"x": (1, 3), "mask": (1,)} in shapes
    assert all(shape["x"] != (2, 3) for shape in shapes)
    assert all(not RULES.broken({name: torch.zeros(size) for name, size in shape.items()}) for shape in shapes)


@pytest.mark.parametrize("text", ["x.__class__", "open('f')", "(lambda: x)()", "[y for y in x]", "y.size(0) == 1"])
def test_text_that_is_no_guard_is_not_run(text: str) -> None:
    with pytest.raises(GuardError, match="is no guard"):
        check_guards(("x",), (text,), torch.zeros(1))
