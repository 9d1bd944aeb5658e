"""Facts of ranks compared; more of it, through steps and networks, in ``test_step.py`` and ``test_stage.py``."""

import re
from datetime import timedelta

import torch
import torch.distributed as dist

from pararealize.distributed.consistency import agree, digests
from pararealize.errors import DistributedError
from tests.models import Perceptron
from tests.ranks import on_ranks


def compare():
    rank, limit = dist.get_rank(), timedelta(seconds=20)
    arguments = {"what": "sing", "remedy": "tune", "timeout": limit}
    agree(dist.group.WORLD, {"pitch": 440, "words": ["la"]}, **arguments)
    messages = []
    for facts in (
        {"pitch": 440 + rank // 2, "rank": rank},
        {"pitch": rank} if rank else {"pitch": 0, "fault": "hoarse"},
    ):
        try:
            agree(dist.group.WORLD, facts, **arguments, who=lambda i: f"{i}!")
        except DistributedError as error:
            messages.append(str(error))
    return messages


def test_differences_name_ranks_and_values() -> None:
    told = on_ranks(3, compare)
    assert told[0] == told[1] == told[2]
    differing, fault = told[0]
    assert differing.startswith("the ranks do not agree on how to sing: ")
    assert "pitch is 440 on rank 0!, 1!, 441 on rank 2!; rank is 0 on rank 0!, 1 on rank 1!, 2 on rank 2!" in differing
    assert differing.endswith("; tune")
    assert fault == "rank 0!: hoarse"


def test_digests_tell_any_change_of_a_weight() -> None:
    model = Perceptron()
    before = digests(model)
    assert list(before) == [name for name, _ in model.named_parameters()]
    with torch.no_grad():
        model[2].weight[3, 3].nextafter_(torch.tensor(9.0))
    after = digests(model)
    assert [name for name in before if before[name] != after[name]] == ["2.weight"]
    assert all(re.fullmatch("[0-9a-f]{12}", digest) for digest in before.values())
