"""A network is recorded anew for inputs that its recordings do not hold for, once, within a limit, or says why not."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pararealize import capture
from pararealize.errors import ExampleError, GuardError, PararealizeError, RecordingWarning
from pararealize.tracing.captured import Capture
from pararealize.tracing.conditions import CallConditions
from pararealize.tracing.module_copy import copy_model
from pararealize.tracing.original import Original
from pararealize.tracing.recordings import Recordings
from pararealize.tracing.tree_watch import TreeWatch


class AnyRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.linear(x) * x.dim()
        return y if mask is None else y * mask


def recordings(limit: int = 8, refuse: Callable[[Capture], str | None] = lambda _: None) -> Recordings[nn.Module]:
    model = AnyRank()
    captured = capture(model, torch.randn(2, 3))
    tree, _ = copy_model(model, captured.constants)

    def build(new: Capture) -> tuple[CallConditions, nn.Module]:
        if (why := refuse(new)) is not None:
            raise GuardError(why)
        return CallConditions.of(new.example.call, new.guards), new.graph_module

    conditions, watch = CallConditions.of(captured.example.call, captured.guards), TreeWatch(tree, [captured.graph])
    return Recordings(conditions, Original(tree), build, watch=watch, limit=limit)


def of_rank(rank: int) -> Tensor:
    return torch.randn(*[2] * (rank - 1), 3)


def test_a_recording_is_made_once_and_with_a_note() -> None:
    kept = recordings()
    assert kept.pick((of_rank(2),), {}) is None
    with pytest.warns(RecordingWarning, match=r"AnyRank was recorded anew for x \(2, 2, 3\) float32: .*x.dim\(\) =="):
        network = kept.pick((of_rank(3),), {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kept.pick((), {"x": of_rank(3)}) is network
    assert [str(guards).splitlines()[0] for guards in kept.guards] == ["x.dim() == 2", "x.dim() == 3"]


def test_an_argument_that_the_example_did_not_have() -> None:
    kept, x, mask = recordings(), of_rank(2), torch.ones(2, 3)
    with pytest.warns(RecordingWarning, match="mask"):
        network = kept.pick((x, mask), {})
    assert network is not None
    assert network(x, mask).shape == (2, 3)


def test_the_one_that_was_not_used_for_longest_gives_way() -> None:
    kept = recordings(limit=2)
    for rank in (3, 4):
        with pytest.warns(RecordingWarning):
            kept.pick((of_rank(rank),), {})
    kept.pick((of_rank(3),), {})
    with pytest.warns(RecordingWarning, match="more than 2 recordings were asked for"):
        kept.pick((of_rank(5),), {})
    assert [str(guards)[11] for guards in kept.guards] == ["2", "3", "5"]


def test_what_cannot_be_recorded_says_why_and_is_not_tried_again() -> None:
    tries = []

    def refuse(captured: Capture) -> str:
        tries.append(captured)
        return "it has other blocks"

    kept = recordings(refuse=refuse)
    for _ in range(2):
        with pytest.raises(
            GuardError, match=r"x.dim\(\) == 2.*x \(2, 2, 3\).*it has other blocks; pass inputs"
        ) as raised:
            kept.pick((of_rank(3),), {})
        assert raised.value.guards[0] == "x.dim() == 2"
    assert len(tries) == 1


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((torch.tensor(1.0),), PararealizeError, "AnyRank"),
        ((torch.randn(2, 2, 4),), ExampleError, r"does not accept .*mat1 and mat2"),
        ((None,), PararealizeError, "None"),
        (("text",), PararealizeError, "text"),
        ((of_rank(2), of_rank(2), of_rank(2)), ExampleError, "too many positional arguments"),
        ((), ExampleError, "missing a required argument: 'x'"),
    ],
)
def test_what_the_original_does_not_take_either(args: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        recordings().pick(args, {})


def test_tensors_of_a_transformation_are_refused() -> None:
    kept = recordings()
    with pytest.raises(GuardError, match="without values"):
        torch.func.vmap(lambda x: kept.pick((x,), {}))(torch.randn(5, 2, 2, 3))


def test_threads_record_each_kind_of_input_once() -> None:
    kept, networks, errors = recordings(), [], []
    barrier = threading.Barrier(8)

    def call(rank: int) -> None:
        try:
            barrier.wait()
            for _ in range(20):
                networks.append((rank, kept.pick((of_rank(rank),), {})))
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=call, args=(2 + i % 3,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    found = {(rank, id(call)) for rank, call in networks}
    assert len(found) == 3
