"""No network's messages hang in queues like NCCL's: the order of issue of steps and inference, emulated."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pararealize import layer_parallel
from tests.message_queues import Log, Operation, fault_of, logged_as_nccl
from tests.models import SharedBias, StochasticDepth
from tests.rank_comparison import TIGHT, converted, furthest, mean_square, mesh_of, tensor_of, vectors
from tests.ranks import on_ranks

NETWORKS = {  # name: (network, other arguments, reduce_linear)
    "a chain": ("perceptron", {}, False),
    "sums": ("alike", {"n": 6}, True),
    "stem and context": ("context and the stem", {}, False),
    "gradients of contexts": ("context with gradients", {}, False),
    "masks and sums": ("mask from the inputs", {"coarse": "linear"}, True),
    "tied": ("tied embedding", {}, False),
    "windows": ("windows", {}, False),
    "windows, all-reduced": ("windows, linear coarse", {"n": 3}, True),
    "windows, short ones": ("windows behind a sequential block", {}, False),
}
PAIRS = {  # those with two segments a window
    "windows that read context": ("windows, context with gradients", {}, False),
    "windows, tied": ("windows, tied embedding", {}, False),
    "sums": ("alike", {"n": 6}, True),
}
SOLVERS = {
    "two levels": {"coarsening": 3},
    "three levels": {"coarsening": 2, "levels": 3, "cycle": "F", "relaxation": "FCF", "backward_iterations": 2},
    "warm": {"coarsening": 2, "warm_start": True},
    "until a tolerance": {"coarsening": 2, "tolerance": 1e-3, "forward_iterations": 3},
}


def parareal(names, dp=1):
    size, found = dist.get_world_size(), {}
    for name in names:
        network, changes, way = {**NETWORKS, **PAIRS}[name]
        net, batch = converted(network, **changes)
        with logged_as_nccl() as log:
            stage = net.distribute(mesh_of(dp, size // dp) if dp > 1 else mesh_of(size), timeout=30, reduce_linear=way)
            x = batch(2)
            for _ in range(2):  # in the first, formats are learnt
                stage.step(x, target=torch.zeros(()), loss_fn=mean_square)
            stage.eval()
            for everywhere in (False, True, False):
                stage(x, everywhere=everywhere)
            stage.close()
        for _ in range(2):
            mean_square(tensor_of(net.train()(x)), torch.zeros(())).backward()
        found[name] = log, furthest(stage, net, "grad")
    return found


def multigrid(names):
    found = {}
    for name in names:
        torch.manual_seed(0)
        model = (
            SharedBias(8)
            if name == "warm"
            else nn.Sequential(nn.Linear(6, 6), *(StochasticDepth(6) for _ in range(12)))
        )
        net = layer_parallel(model.double(), example_inputs=vectors(2, 6), **SOLVERS[name])
        with logged_as_nccl() as log:
            stage = net.distribute(mesh_of(dist.get_world_size()), timeout=30)
            x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6)
            for _ in range(3):  # from the second on, receives are posted ahead
                stage.step(x, loss_fn=lambda y: y.square().mean())
            stage.eval()
            stage(x)
            stage.close()
        found[name] = log, 0.0
    return found


def check(ranks):
    for name in ranks[0]:
        logs = [rank[name][0] for rank in ranks]
        assert max(rank[name][1] for rank in ranks) < TIGHT, f"{name!r} computes something else in this order"
        assert sum(len(log.operations) for log in logs) > 8
        for by in ("pair", "group"):
            assert fault_of(logs, by=by) == "", f"{name!r} with a queue a {by}"


def test_parareal_networks_get_through() -> None:
    check(on_ranks(3, parareal, list(NETWORKS)))


def test_copies_of_networks_get_through() -> None:
    check(on_ranks(4, parareal, list(PAIRS), 2))


def test_multigrid_gets_through() -> None:
    check(on_ranks(3, multigrid, list(SOLVERS)))


# The emulation itself -------------------------------------------------------------------------------------------------


def log_of(rank: int, *operations: tuple[str, str, str], waits: tuple[int, ...] = (), waited: int = 0) -> Log:
    rows = [Operation(kind, group, (1 - rank,), label, waited) for kind, group, label in operations]
    return Log(rank, rows, list(waits))


def test_receives_in_front_of_sends_on_both_sides_hang_in_one_group_and_not_in_two() -> None:
    """As multigrid's receives of the adjoint solve did, posted ahead within the forward solve."""
    first = ("receive", "down", "λ"), ("send", "up", "u")
    second = ("receive", "up", "u"), ("send", "down", "λ")
    assert fault_of([log_of(0, *first), log_of(1, *second)]) == ""
    together = [tuple((kind, "both", label) for kind, _, label in rows) for rows in (first, second)]
    assert "Operation(kind='receive', group='both'" in fault_of([log_of(0, *together[0]), log_of(1, *together[1])])


@pytest.mark.parametrize("by", ["pair", "group"])
def test_a_message_that_is_taken_for_another_is_seen(by: str) -> None:
    logs = [
        log_of(0, ("send", "up", "a"), ("send", "up", "b")),
        log_of(1, ("receive", "up", "b"), ("receive", "up", "a")),
    ]
    assert "label='a'" in fault_of(logs, by=by)


def test_what_is_issued_waits_for_what_was_waited_for() -> None:
    waiting = log_of(0, ("receive", "down", "b"), ("send", "up", "a"), waits=(0,), waited=1)
    waiting.operations[0] = Operation("receive", "down", (1,), "b", 0)
    answer = log_of(1, ("receive", "up", "a"), ("send", "down", "b"), waits=(0,), waited=1)
    answer.operations[0] = Operation("receive", "up", (0,), "a", 0)
    assert "rank 0 at" in fault_of([waiting, answer])
    assert fault_of([waiting, log_of(1, ("receive", "up", "a"), ("send", "down", "b"))]) == ""
