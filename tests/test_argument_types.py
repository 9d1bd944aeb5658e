"""Arguments of wrong types are typed errors, for every public function and every argument of it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pararealize
from pararealize import (
    Plan,
    Recipe,
    Tableau,
    Timeline,
    Transfer,
    capture,
    find_blocks,
    make_plan,
)
from pararealize.argument_types import is_allowed, typed_arguments
from pararealize.calibration.figure import draw_calibration
from pararealize.compiler import build_modules
from pararealize.data import load
from pararealize.errors import CheckpointError, ExampleError, PararealizeError, PlanError
from pararealize.models import build, resnet20
from pararealize.plan.figure import draw_plan
from pararealize.plan.timeline_figure import draw_timeline
from pararealize.plan.trace import chrome_trace
from tests.odd_programs import Residuals

X = torch.randn(4, 8)


class Unrelated:
    """An object that nothing takes."""


WRONG = {
    "nothing": None, "a word": "word", "an object": Unrelated(), "a class": Unrelated, "minus one": -1, "a half": 0.5,
    "not a number": float("nan"), "huge": 2**70, "a nested list": [[]], "a dict": {}, "a tensor": torch.randn(2, 8),
}  # fmt: skip


@functools.cache
def values() -> dict[str, Any]:
    """A value of every kind that the public functions take."""
    model = nn.Sequential(nn.Linear(8, 8), Residuals(), nn.Linear(8, 4))
    chain = find_blocks(capture(model, X))
    plan = make_plan(chain, 3, coarse="linear")
    adapters, coarse = build_modules(chain, plan, coarse="linear")
    net = pararealize.pararealize(model, 3, coarse="linear", example_inputs=X)
    data = load("digits", batch_size=32, count=(64, 32))
    convolutional = pararealize.pararealize(resnet20(), 3, coarse="linear")
    return {
        "model": model, "chain": chain, "plan": plan, "adapters": adapters, "coarse": coarse, "net": net, "data": data,
        "fields": pararealize.receptive_fields(chain), "costs": pararealize.count_costs(chain),
        "capture": chain.capture, "norms": resnet20(),
        "calibration": pararealize.calibrate(convolutional, [torch.randn(8, 3, 32, 32)], steps=1),
    }  # fmt: skip


CALLS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "build_adapter": lambda v: {
        "source": v["plan"].adapters[0].x, "target": v["plan"].adapters[0].y, "reads": "stem"
    },
    "build_coarse": lambda v: {
        "plan": v["plan"].coarse_blocks[0], "chain": v["chain"], "first": v["plan"].segments[1].first,
        "last": v["plan"].segments[1].last, "seed": 0,
    },
    "calibrate": lambda v: {"net": v["net"], "batches": [X], "steps": 1},
    "capture": lambda v: {"model": v["model"], "example_inputs": X},
    "capture_inference": lambda v: {"net": v["net"], "example_inputs": X},
    "capture_stage": lambda v: {"stage": v["net"]},
    "capture_step": lambda v: {"net": v["net"], "loss_fn": torch.nn.functional.mse_loss, "example_inputs": X},
    "compare": lambda v: {"net": v["net"], "original": v["model"], "batches": [X], "batch_sizes": [1], "rounds": 1},
    "device_profile": lambda v: {"device": "cpu"},
    "load": lambda v: {"folder": "nothing-there"},
    "load_original": lambda v: {"folder": "nothing-there"},
    "plan_strategies": lambda v: {
        "model": v["model"], "example_inputs": X, "devices": 2, "batch_size": 4, "curves": False
    },
    "write_report": lambda v: {"path": "report.html"},
    "capture_graphs": lambda v: {"net": v["net"], "example_inputs": X},
    "count_costs": lambda v: {"chain": v["chain"]},
    "emit": lambda v: {name: v[name] for name in ("chain", "plan", "adapters", "coarse")},
    "evaluate": lambda v: {"net": v["model"], "data": v["data"]},
    "find_blocks": lambda v: {"capture": v["capture"]},
    "fine_tune": lambda v: {"net": v["net"], "batches": [X] * 3, "steps": 1},
    "fit": lambda v: {"net": v["net"], "data": v["data"], "recipe": Recipe(epochs=1)},
    "layer_parallel": lambda v: {"model": v["model"], "example_inputs": X},
    "make_plan": lambda v: {"chain": v["chain"], "n": 3, "coarse": "linear"},
    "measure_costs": lambda v: {"chain": v["chain"], "repeats": 1, "warmup": 0},
    "measure_network": lambda v: {"net": v["net"], "example_inputs": X, "repeats": 1, "warmup": 0},
    "pararealize": lambda v: {"model": v["model"], "n": 3, "example_inputs": X, "coarse": "linear"},
    "plan_segments": lambda v: {
        "chain": v["chain"], "fields": v["fields"], "costs": v["costs"], "n": 3, "coarse": "linear"
    },
    "plan_times": lambda v: {"plan": v["plan"]},
    "prolong": lambda v: {"model": v["model"], "example_inputs": X},
    "recalibrate_batchnorm": lambda v: {"model": v["norms"], "loader": [torch.randn(2, 3, 32, 32)]},
    "receptive_fields": lambda v: {"chain": v["chain"]},
    "restack": lambda v: {"model": v["model"], "scheme": "midpoint", "example_inputs": X},
    "run_local": lambda v: {"net": v["net"]},
    "simulate": lambda v: {"plan": v["plan"]},
    "tradeoff": lambda v: {"model": v["model"], "batches": [X] * 5, "n": 2, "points": 1, "sensitivity_batches": 1},
}  # fmt: skip
FUNCTIONS = [name for name in pararealize.__all__ if inspect.isfunction(getattr(pararealize, name))]
DEEPER = {  # a function of the user's may raise
    ("calibrate", "report"), ("calibrate", "mask"), ("fine_tune", "report"), ("fine_tune", "mask"), ("fit", "report"),
    ("compare", "report"), ("plan_strategies", "report"),
}  # fmt: skip


@pytest.mark.parametrize(
    "function, argument",
    [
        (name, argument.name)
        for name in FUNCTIONS
        for argument in inspect.signature(getattr(pararealize, name)).parameters.values()
        if argument.kind is not inspect.Parameter.VAR_POSITIONAL
    ],
)
def test_a_wrong_argument_is_a_typed_error(
    function: str, argument: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where a run's folder would come to lie
    arguments = CALLS[function](values())
    for wrong, value in WRONG.items():
        if function in ("fit", "fine_tune", "evaluate", "tradeoff") and is_allowed(value, _hint(function, argument)):
            continue  # it would train
        with contextlib.suppress(PararealizeError), contextlib.redirect_stdout(io.StringIO()):
            try:
                getattr(pararealize, function)(**arguments | {argument: value})
            except (TypeError, AttributeError, ValueError, KeyError, IndexError, OverflowError) as error:
                if isinstance(error, PararealizeError) or (function, argument) in DEEPER:
                    continue
                raise AssertionError(f"{function}({argument} = {wrong}) raises {error!r}") from error


def _hint(function: str, argument: str) -> Any:
    return inspect.signature(getattr(pararealize, function), eval_str=True).parameters[argument].annotation


WEIGHT = "0.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda state: None,
        lambda state: 3,
        lambda state: [],
        lambda state: "path.pt",
        lambda state: list(state.items()),
        lambda state: {0: state[WEIGHT]},
        lambda state: {WEIGHT: state[WEIGHT]},
        lambda state: state | {"more": state[WEIGHT]},
        *(
            lambda state, change=change: state | {WEIGHT: change(state[WEIGHT])}
            for change in (
                lambda weight: 3,
                lambda weight: None,
                lambda weight: {"a": 1},
                Tensor.numpy,
                Tensor.cfloat,
                Tensor.to_sparse,
                lambda weight: weight.to("meta"),
                lambda weight: weight[:1],
                lambda weight: torch.nested.nested_tensor([torch.ones(2)]),
            )
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's own about nested tensors
def test_a_checkpoint_that_holds_no_tensors_of_the_model_is_refused(change: Callable[[Any], Any]) -> None:
    net = values()["net"]
    before = net.original_state_dict()
    kept = {key: value.clone() for key, value in before.items()}
    with pytest.raises(CheckpointError, match="the checkpoint"):
        net.load_original_state_dict(change(before))
    assert all(torch.equal(value, kept[key]) for key, value in net.original_state_dict().items())


@pytest.mark.parametrize("kind", [Plan, Timeline])
@pytest.mark.parametrize("text", [None, 3, {}, [], Path("plan.json"), "", "nul", "[]", "{}", "[" * 100_000])
def test_what_is_no_text_of_a_value_is_refused(kind: Any, text: Any) -> None:
    with pytest.raises(PlanError):
        kind.from_json(text)


@pytest.mark.parametrize(
    "change", [lambda text: json.loads(text), lambda text: text, lambda text: Path("plan.json"), lambda text: 3]
)
@pytest.mark.parametrize("n", [None, 3])
def test_a_plan_that_is_none_is_refused_and_the_remedy_works(change: Callable[[str], Any], n: int | None) -> None:
    v = values()
    text = v["plan"].to_json()
    with pytest.raises(PlanError, match=r"pass a Plan: net\.plan, or Plan\.from_json"):
        pararealize.pararealize(v["model"], n, plan=change(text), example_inputs=X)
    net = pararealize.pararealize(v["model"], n, plan=Plan.from_json(text), example_inputs=X)
    assert net.plan == v["plan"]


@pytest.mark.parametrize("n", [2**70, -(2**70), 3.0, "3", np.float64(3), True, torch.tensor(3), [3]])
def test_an_n_that_is_none_is_refused(n: Any) -> None:
    v = values()
    for call in (
        lambda: pararealize.pararealize(v["model"], n, example_inputs=X, devices=["cpu"]),
        lambda: make_plan(v["chain"], n),
    ):
        with pytest.raises(PlanError, match=r"n (is|=)"):
            call()


def test_an_integer_of_numpy_is_an_n() -> None:
    net = pararealize.pararealize(values()["model"], np.int64(3), example_inputs=X, coarse="linear")  # type: ignore[arg-type]
    assert type(net.plan.n) is int
    assert Plan.from_json(net.plan.to_json()) == net.plan


@pytest.mark.parametrize(
    "call",
    [
        lambda v: v["net"].iterate((), 1),
        lambda v: v["net"].iterate({"y": X}, 1),
        lambda v: v["net"].iterate((X, X), 1),
        lambda v: v["net"].iterate(None, 1),
        lambda v: v["net"].iterate(X, "1"),
        lambda v: v["plan"].check(None),
        lambda v: draw_plan(None, "plan.svg"),
        lambda v: draw_plan(v["plan"], 3),
        lambda v: draw_timeline(None, "timeline.svg"),
        lambda v: draw_calibration(None, "calibration.svg"),
        lambda v: chrome_trace(None),
        lambda v: v["net"].distribute(None),
        lambda v: build(3),
        lambda v: build("resnet20", depth=3),
        lambda v: load(None),
        lambda v: Transfer("fast"),
        lambda v: Transfer(1e-5, None),
        lambda v: Recipe(milestones=3),
        lambda v: Recipe(milestones="a"),
        lambda v: Tableau(name="none", a=None, b=None),
        lambda v: Tableau(name="words", a=[["x"]], b=["y"]),
    ],
)
def test_methods_and_classes_too(call: Callable[[Any], Any]) -> None:
    with pytest.raises(PararealizeError):
        call(values())


@pytest.mark.parametrize(
    "value, hint, allowed",
    [
        (1, int, True), (np.int32(1), int, True), (True, int, False), (2**63, int, False), (1.0, int, False),
        (1, float, True), (np.float32(1), float, True), (True, float, False), (2**70, float, False),
        (None, int | None, True), ("a", Literal["a", "b"], True), ("c", Literal["a", "b"], False),
        (1, Literal[True], False), ("abc", Sequence[str], False), (["abc"], Sequence[str], True),
        ([1], Sequence[str], False), ({}, Mapping[str, int], True), (len, Callable[..., Any], True),
        (range(2), Sequence[str], False), (range(2), Sequence[int], True), (frozenset("a"), Iterable[int], False),
        (3, Callable[..., Any], False), ([nn.Linear], Iterable[type[nn.Module] | str], True),
        ([int], Iterable[type[nn.Module] | str], False), (object(), Any, True), (X, Iterable[Any], True),
    ],
)  # fmt: skip
def test_what_an_annotation_allows(value: Any, hint: Any, allowed: bool) -> None:
    assert is_allowed(value, hint) is allowed


def _seeded(seed: int) -> int:
    return seed


def test_all_faults_are_told_at_once_with_the_error_of_the_first() -> None:
    @typed_arguments(PlanError, "free", names=ExampleError)
    def function(names: Sequence[str], plan: Plan | None = None, free: int = 3) -> Any:
        return names

    assert function(["a"]) == ["a"]
    assert function(["a"], free="b") == ["a"]  # type: ignore[arg-type]
    words = (
        r"names holds 3; pass a list, each item a string; and plan is a dict; pass a Plan, such as make_plan.* or None"
    )
    with pytest.raises(ExampleError, match=words):
        function([3], {})  # type: ignore[arg-type, list-item]
    for value in (2**70, np.uint64(2**63), 10**5000):  # Python does not write out the last
        with pytest.raises(PlanError, match=r"bits, where 63 are the most; pass a whole number"):
            typed_arguments(PlanError)(_seeded)(value)
    with pytest.raises(TypeError, match="missing a required argument"):  # no call of this function at all
        function()  # type: ignore[call-arg]
