"""What a graph with regions prints as, and what its code may be asked to do."""

from __future__ import annotations

import textwrap

import pytest
import torch
from torch import Tensor, fx, nn

from pararealize.tracing.module_view import Piece
from pararealize.tracing.region_code import checkpoint_as_reentrant, write_regions
from pararealize.tracing.regions import Autocast, Checkpoint, GradMode, Region


def graph_of(*regions: Region | None) -> fx.Graph:
    """A chain of additions, each in a region."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    for i, region in enumerate(regions):
        x = graph.call_function(torch.add, (x, i))
        if region is not None:
            x.meta["region"] = region
    graph.output(x)
    write_regions(graph)
    return graph


def code_of(graph: fx.Graph) -> str:
    lines = graph.python_code("self").src.strip().split("\n")[1:]
    return textwrap.dedent("\n".join(line for line in lines if line.strip()))


def test_neighbours_in_one_region_share_it() -> None:
    off = GradMode(False)
    cast = Autocast("cpu", torch.bfloat16, True, False)
    assert code_of(graph_of((off,), (off, cast), (off,), ())) == textwrap.dedent("""\
        with torch.no_grad():
            add = torch.add(x, 0);  x = None
            with torch.autocast('cpu', torch.bfloat16, enabled = True, cache_enabled = False):
                add_1 = torch.add(add, 1);  add = None
            add_2 = torch.add(add_1, 2);  add_1 = None
        add_3 = torch.add(add_2, 3);  add_2 = None
        return add_3""")


def test_what_was_added_to_the_graph_stands_outside() -> None:
    off = (GradMode(False),)
    assert code_of(graph_of(off, None, off)).count("with torch.no_grad():") == 2


def test_a_checkpoint_is_a_function_and_its_call() -> None:
    first, second = (Checkpoint(i, False, (("preserve_rng_state", True),)) for i in range(2))
    code = code_of(graph_of((first,), (first,), (second,)))
    assert code.count("def checkpoint_") == 2
    assert "add_1 = torch.utils.checkpoint.checkpoint(checkpoint_1, x, use_reentrant = False" in code
    assert "x = None\ndef checkpoint_3(add_1):" in code


def test_code_without_regions_is_that_of_torch() -> None:
    graph = graph_of((), None)
    assert type(graph._codegen) is fx.graph.CodeGen


def test_a_module_runs_it_and_is_copied_with_it() -> None:
    import copy

    piece = Piece(nn.Module(), graph_of((GradMode(False),), ()))
    x = torch.ones(2, requires_grad=True)
    for module in (piece, copy.deepcopy(piece)):
        assert torch.equal(module(x), torch.full((2,), 2.0))
        assert not module(x).requires_grad


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_parameters_of_a_reentrant_checkpoint_wait_for_an_input_that_needs_a_gradient() -> None:
    layer = nn.Linear(2, 2)
    for needs_gradient in (False, True):
        x = torch.ones(1, 2, requires_grad=needs_gradient)
        expected = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=True)
        result = checkpoint_as_reentrant(layer, x)
        assert result.requires_grad == expected.requires_grad == needs_gradient


def test_a_reentrant_checkpoint_runs_all_of_its_function_again() -> None:
    """The other kind stops at the last value that backward needs: a counter behind it was counted once."""
    counts = []

    def count(x: Tensor) -> Tensor:
        y = torch.sigmoid(x)
        counts.append(1)
        return y

    x = torch.randn(2, requires_grad=True)
    checkpoint_as_reentrant(count, x).sum().backward()
    assert len(counts) == 2
