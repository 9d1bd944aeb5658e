"""A module whose calls are looked at before Python binds them to generated code."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from pararealize.errors import ExampleError
from pararealize.tracing.called_module import CalledModule
from pararealize.tracing.example import Example


def called() -> CalledModule:
    model = nn.Sequential(nn.Linear(3, 3))
    graph = fx.Graph()
    (x,) = Example.of(model, torch.randn(2, 3)).call.write(graph).values()
    graph.output(graph.call_module("0", (x,)))
    return CalledModule(model, graph)


def test_a_call_that_does_not_fit_is_refused_and_says_nothing_on_stderr(capsys) -> None:
    module = called()
    assert "as_captured" not in module.code  # of one tensor, the graph checks nothing
    assert module(torch.ones(4, 3)).shape == module(input=torch.ones(4, 3)).shape == (4, 3)
    for args, kwargs in (((), {}), ((None,), {}), ((), {"x": torch.ones(2, 3)}), ((torch.ones(2, 3),) * 2, {})):
        with pytest.raises(ExampleError):
            module(*args, **kwargs)
    with pytest.raises(RuntimeError):  # of another width: torch's own error
        module(torch.ones(4, 2))
    assert not capsys.readouterr().err.count("ExampleError")


def test_hooks_before_the_forward_may_make_its_arguments() -> None:
    module = called()
    module.register_forward_pre_hook(lambda _, args: (torch.as_tensor(args[0]),))
    assert module([[1.0, 2.0, 3.0]]).shape == (1, 3)


def test_compiled_whole() -> None:
    module, x = called(), torch.randn(2, 3)
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), module(x))


def test_more_networks_are_compiled_than_one_function_is() -> None:
    """torch.compile stops at ``recompile_limit`` compilations of one code object; networks share none."""
    x = torch.randn(2, 3)
    for _ in range(torch._dynamo.config.recompile_limit + 2):
        module = called()
        torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), module(x))
