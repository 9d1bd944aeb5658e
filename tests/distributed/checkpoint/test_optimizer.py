from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pararealize.distributed.checkpoint.optimizer import gather_optimizer_state, load_optimizer_state
from pararealize.errors import CheckpointError
from tests import failing_ranks, rank_networks
from tests.rank_comparison import converted, distance, mean_square, mesh_of
from tests.ranks import on_ranks


def make(order: list[str], lr: float = 0.1, momentum: float = 0.9) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Two groups, whose parameters stand in any order."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    found = dict(network.named_parameters())
    groups = [{"params": [found[name] for name in order if name.startswith(i)], "lr": lr} for i in "01"]
    return network, torch.optim.SGD(groups, lr=lr, momentum=momentum)


NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]


def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()


def test_the_order_of_parameters_does_not_matter() -> None:
    network, optimizer = make(NAMES)
    step(network, optimizer)
    state = gather_optimizer_state(network, optimizer)
    assert [group["params"] for group in state["groups"]] == [NAMES[:2], NAMES[2:]]
    other, again = make(NAMES[::-1], lr=7.0)
    other.load_state_dict(network.state_dict())
    load_optimizer_state(other, again, state)
    step(network, optimizer)
    step(other, again)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_states_that_do_not_fit_are_refused() -> None:
    network, optimizer = make(NAMES)
    step(network, optimizer)
    state = gather_optimizer_state(network, optimizer)
    one = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.raises(CheckpointError, match="the state has 2 groups of parameters and the optimiser 1"):
        load_optimizer_state(network, one, state)
    with pytest.raises(CheckpointError, match="no state of gather_optimizer_state"):
        load_optimizer_state(network, optimizer, optimizer.state_dict())
    swapped = {**state, "groups": state["groups"][::-1]}
    with pytest.raises(CheckpointError, match=r"2 parameters of group 0 are not in it there \(0.weight, 0.bias\)"):
        load_optimizer_state(network, optimizer, swapped)
    state["state"]["0.weight"]["momentum_buffer"] = torch.zeros(9)
    with pytest.raises(CheckpointError, match=r"momentum_buffer of 0.weight: \(9,\) there, \(3, 2\) here"):
        load_optimizer_state(network, optimizer, state)


@pytest.mark.parametrize("way, told", [
    ("settings", "rank 1 has groups of parameters"), ("strangers", "rank 1: 2 of the optimiser's parameters are not")
])  # fmt: skip
def test_what_is_wrong_on_one_rank_is_told_by_all(tmp_path: Path, way: str, told: str) -> None:
    for end in failing_ranks.launch(2, tmp_path, way, seconds=60, target=rank_networks.fail):
        assert (end["code"], end["type"]) == (0, "CheckpointError"), end
        assert told in end["error"]


def taken_over(state: dict[str, Any]) -> dict[str, float]:
    """How far the momenta of this rank are from those of the one-process network."""
    stage = converted("tied embedding")[0].distribute(mesh_of(2), timeout=30)
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1, momentum=0.9)
    load_optimizer_state(stage, optimizer, state)
    momenta = {name: optimizer.state[p].get("momentum_buffer") for name, p in stage.named_parameters()}
    one = {"head.weight": "embed.weight"}
    return {name: distance(m, state["state"][one.get(name, name)]["momentum_buffer"]) for name, m in momenta.items()}


def test_a_tied_parameter_is_found_under_another_of_its_names() -> None:
    """In one process the embedding has the first name; the second of two ranks knows it by the head's alone."""
    net, batch = converted("tied embedding")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    mean_square(net(batch(2)), torch.zeros(())).backward()
    optimizer.step()
    state = gather_optimizer_state(net, optimizer)
    assert "head.weight" not in state["state"]
    first, last = on_ranks(2, taken_over, state)
    assert "embed.weight" in first
    assert "head.weight" in last
    assert {*first.values(), *last.values()} == {0.0}
