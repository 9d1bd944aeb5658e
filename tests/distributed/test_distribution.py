"""A network is taken apart for ranks, or refused on every one of them."""

from __future__ import annotations

import contextlib
import copy
import io
import re
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from pararealize import pararealize
from pararealize.errors import DistributedError
from tests.models import SmallResNet
from tests.rank_comparison import converted, mean_square, mesh_of
from tests.ranks import on_ranks


def page():
    """Run the script that the documentation shows; what it prints."""
    text = (Path(__file__).resolve().parents[2] / "docs/howto/distributed.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(# train.py\n.*?)```", text, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(script, "train.py", "exec"), {})
    return printed.getvalue()


def test_the_script_of_the_documentation_runs():
    first, last = on_ranks(2, page)
    assert re.fullmatch(r"(step \d: loss \d\.\d{3}\n){5}", first)
    assert last == "rank 1 has the output, (8, 10)\n"


class Named(nn.Module):
    """A model whose own modules have the names that a stage's attributes have."""

    names = ("setup", "plan", "mesh", "group", "rank", "step", "partition", "parts")

    def __init__(self):
        super().__init__()
        for name in self.names:
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, x):
        for name in self.names:
            x = torch.tanh(self._modules[name](x))
        return x


def with_such_names():
    net = pararealize(Named(), n=2, example_inputs=torch.ones(2, 4), coarse="linear")
    stage = net.distribute(mesh_of(1), timeout=20)
    x = torch.ones(3, 4)
    loss = stage.step(x, target=torch.zeros(()), loss_fn=mean_square)
    return torch.equal(stage(x), net(x)), stage.state_dict().keys() == net.state_dict().keys(), loss.item() > 0


def test_modules_of_the_user_may_have_the_names_of_attributes():
    assert on_ranks(1, with_such_names) == [(True, True, True)]


# Refusals ------------------------------------------------------------------------------------------------------------


def refused(call):
    """The message of the typed error that a call raises."""
    with pytest.raises(DistributedError) as caught:
        call()
    return str(caught.value)


def refusals():
    """One after the other on both ranks: each ends in an error on each."""
    rank, mesh = dist.get_rank(), mesh_of(2)
    net, batch = converted("perceptron")
    other, _ = converted("perceptron", n=2 + rank)
    changed = copy.deepcopy(net)
    with torch.no_grad():
        next(changed.parameters()).add_(rank)
    placed, _ = converted("perceptron", devices=["cpu"])
    normed = SmallResNet()
    normed.layer2[-1] = normed.layer2[-2]
    tied = pararealize(normed, n=5, example_inputs=torch.randn(2, 3, 8, 8))
    synchronised, _ = converted("residual, batch norm")
    synchronised.layer1[0].bn1.__class__ = nn.SyncBatchNorm
    stage = net.distribute(mesh, timeout=20)

    def step(inputs, **arguments):
        return lambda: stage.step(inputs, **{"target": torch.zeros(()), "loss_fn": mean_square, **arguments})

    def autocast():
        with torch.autocast("cpu", torch.bfloat16, enabled=rank == 1):
            step(batch(2))()

    found = {
        "assignment": refused(lambda: net.distribute(mesh, assignment=[4, 1], timeout=20)),
        "one rank's assignment": refused(lambda: net.distribute(mesh, assignment=[[2, 2], [9]][rank], timeout=20)),
        "cuts": refused(lambda: net.distribute(mesh, assignment=[[2, 2], [1, 3]][rank], timeout=20)),
        "n": refused(lambda: other.distribute(mesh, timeout=20)),
        "weights": refused(lambda: changed.distribute(mesh, timeout=20)),
        "devices": refused(lambda: placed.distribute(mesh, timeout=20)),
        "norms": refused(lambda: tied.distribute(mesh, assignment=[4, 1], timeout=20)),
        "synchronised": refused(lambda: synchronised.distribute(mesh, timeout=20)),
        "shapes": refused(step(batch(3 + rank))),
        "types": refused(step(batch(7).to([torch.float64, torch.float32][rank]))),
        "autocast": refused(autocast),
        "call": refused([step(batch(9)), lambda: stage(batch(9))][rank]),
    }
    stage.train(rank == 0)
    found["mode"] = refused(step(batch(8)))
    stage.train()
    torch.manual_seed(1)  # the ranks have drawn batches of other sizes
    assert step(batch(2))() > 0  # it goes on after what was refused
    single, _ = converted("perceptron", n=1)
    found["ranks"] = refused(lambda: single.distribute(mesh, timeout=20))
    return found


EXPECTED = {
    "assignment": r"assignment is \[4, 1\]; pass how many of the 4 segments each of the 2 ranks takes",
    "one rank's assignment": r"^rank 1: assignment is \[9\]",
    "cuts": r"segments of the ranks is \(\(1, 2\), \(3, 4\)\) on rank 0, \(\(1, 1\), \(2, 4\)\) on rank 1",
    "n": "n is 2 on rank 0, 3 on rank 1; ",
    "weights": "the digest of .*weight is [0-9a-f]+ on rank 0, [0-9a-f]+ on rank 1; call torch.manual_seed",
    "devices": "converted with devices=",
    "norms": r"batch norms that several ranks share .*: layer2.*bn1 on ranks \[0, 1\]; put the segments",
    "synchronised": r"1 synchronised batch norms \(layer1.0.bn1\) would wait",
    "shapes": r"input input_1 is \(3, 8\) float64 on rank 0 \(segments 1 to 2, .*\), \(4, 8\) float64 on rank 1 \(",
    "types": r"\(7, 8\) float64 on rank 0 .*, \(7, 8\) float32 on rank 1",
    "autocast": "autocast is off on rank 0 .*, bfloat16 on rank 1 ",
    "call": "call is step on rank 0 .*, inference on rank 1",
    "mode": "mode is train on rank 0 .*, eval on rank 1 .*; give every rank",
    "ranks": "2 ranks for n = 1 segments",
}


def test_what_cannot_be_distributed_is_refused_on_every_rank():
    for found in on_ranks(2, refusals):
        assert found.keys() == EXPECTED.keys()
        for what, message in found.items():
            assert re.search(EXPECTED[what], message), f"{what}: {message}"


def abandoned(seconds):
    """The second rank leaves before the second step; the first one is not left waiting."""
    net, batch = converted("perceptron")
    stage = net.distribute(mesh_of(2), timeout=seconds)
    arguments = {"target": torch.zeros(()), "loss_fn": mean_square}
    stage.step(batch(2), **arguments)
    if stage.rank == 1:
        return ""
    message = refused(lambda: stage.step(batch(2), **arguments))
    assert refused(lambda: stage(batch(2))) == message
    return message


def test_a_rank_that_leaves_is_named():
    message, _ = on_ranks(2, abandoned, 3)
    assert re.search(r"^rank 1 \(segments 3 to 4, .*\) has left", message)


# Arguments of one rank alone -----------------------------------------------------------------------------------------

WRONG = {
    "assignment": ["xx", [2.0, 2], 3], "timeout": [None, "10"], "checkpoint_activations": ["yes"], "seed": [1.5, None],
    "bucket_bytes": ["1", 0], "reduce_linear": ["always"], "mesh": ["cpu", None],
}  # fmt: skip


def wrong_arguments():
    """The second of three ranks passes something wrong; then nobody does."""
    rank, mesh = dist.get_rank(), mesh_of(3)
    net, batch = converted("perceptron")
    found = {}
    for name, values in WRONG.items():
        for value in values:
            arguments = {"mesh": mesh, "timeout": 60, **({name: value} if rank == 1 else {})}
            start = time.monotonic()
            message = refused(lambda arguments=arguments: net.distribute(**arguments))
            found[f"{name} {value}"] = message, time.monotonic() - start
            dist.barrier()  # a fault without a mesh is nobody's any more when the next call begins
    square = DeviceMesh("cpu", [[0, 1]], mesh_dim_names=("dp", "parareal"))
    row = DeviceMesh("cpu", [0, 1], mesh_dim_names=("parareal",))
    if rank < 2:
        found["shape"] = refused(lambda: net.distribute([row, square][rank], timeout=60)), 0.0
        found["seconds"] = refused(lambda: net.distribute(row, timeout=60 + rank)), 0.0
    found["ranks"] = refused(lambda: net.distribute([row, mesh, mesh][rank], timeout=60)), 0.0
    dist.barrier()
    stage = net.distribute(mesh, timeout=60)
    return found, stage.step(batch(2), target=torch.zeros(()), loss_fn=mean_square).item() > 0


def test_a_wrong_argument_of_one_rank_is_told_to_all_at_once():
    first, second, third = on_ranks(3, wrong_arguments, seconds=300)
    for found, works in (first, second, third):
        assert works
        for name, values in WRONG.items():
            for value in values:
                message, seconds = found[f"{name} {value}"]
                told = message if name != "mesh" or found is not second[0] else f"rank 1: {message}"
                assert re.match(f"rank 1: {name} (is|holds) ", told), told
                assert "; pass " in told
                assert seconds < 30
        assert re.search(r"the mesh has the ranks \[0, 1(, 2)?\] on rank [01], \[0, 1", found["ranks"][0])
    for found, _ in (first, second):
        assert "[[0, 1]] ('dp', 'parareal') of cpu on rank 1; pass the same" in found["shape"][0]
        assert "timeout is 60 s on rank 0, 61 s on rank 1" in found["seconds"][0]
        assert re.search(
            r"the mesh has the ranks \[0, 1(, 2)?\] on rank [01], \[0, 1(, 2)?\] on rank", found["ranks"][0]
        )
