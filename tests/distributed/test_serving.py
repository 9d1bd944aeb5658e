"""Requests come to rank 0 alone: answers of the one-process network, until the end or an error that names a rank."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pararealize import layer_parallel, pararealize
from pararealize.errors import AgreedError, DistributedError, ExampleError, RankError, RefusedCallError
from tests.models import LanguageModel, Perceptron
from tests.rank_comparison import distance, mesh_of
from tests.ranks import RanksFailed, on_ranks


def network(n: int = 3):
    torch.manual_seed(1)
    return pararealize(Perceptron(), n, coarse="linear", example_inputs=torch.randn(2, 8)).eval()


def answers(ranks: int) -> float:
    """Batches of several sizes, some from several threads at once, and inputs that are refused in between."""
    net = network()
    stage = net.distribute(mesh_of(ranks), timeout=8).eval()
    worst = 0.0
    for _ in range(2):  # the stage serves again afterwards
        with stage.serve() as server:
            if server is None:
                continue
            batches = [torch.randn(size, 8) for size in (1, 4, 1, 3, 2, 4)]
            with pytest.raises(ExampleError):
                server(batches[0], batches[0])
            x = batches[0]
            server(x)
            for wrong in (x.double(), x.half()):
                with pytest.raises(RefusedCallError, match="the network fails with these inputs"):
                    server(wrong)
            for wrong in (x.to("meta"), x.to_sparse(), x.to_mkldnn()):
                with pytest.raises(RefusedCallError, match="which cannot be sent"):
                    server(wrong)
            with ThreadPoolExecutor(3) as threads:
                outputs = list(threads.map(server, batches))
            outputs.append(server(batches[0]))
            for x, y in zip([*batches, batches[0]], outputs, strict=True):
                worst = max(worst, distance(y, net(x).detach()))
            with pytest.raises(AgreedError, match="takes requests in another thread"):
                stage(batches[0])
            assert server.answered == 8
            kept = server
        if stage.rank == 0:
            with pytest.raises(DistributedError, match="the server is closed"):
                kept(batches[0])
    x = torch.ones(2, 8)
    output = stage(x, everywhere=True)  # and steps go on
    return max(worst, distance(output, net(x).detach()))


def test_three_ranks():
    assert max(on_ranks(3, answers, 3)) < 1e-5


def nested() -> float:
    """Ids in, a dict out; the first rank has an error of its own within the block."""
    torch.manual_seed(1)
    ids = torch.randint(11, (2, 6))
    net = pararealize(LanguageModel(2), 2, coarse="linear", example_inputs=ids).eval()
    stage = net.distribute(mesh_of(2), timeout=8).eval()
    worst = 0.0
    for fails in (False, True):
        try:
            with stage.serve() as server:
                if server is not None:
                    for _ in range(2):
                        worst = max(worst, distance(server(ids=ids)["logits"], net(ids)["logits"].detach()))
                        with pytest.raises(RefusedCallError, match="IndexError"):
                            server(ids=ids + 11)  # beyond the table, at a size that has been answered
                    if fails:
                        raise ValueError("of the block")
        except ValueError:
            assert stage.rank == 0
    return worst


@dataclasses.dataclass
class Pair:
    """What a network takes and gives."""

    first: torch.Tensor
    second: torch.Tensor


class OfPairs(nn.Module):
    """Every layer reads the second of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, inputs: Pair) -> Pair:
        x = inputs.first
        for layer in self.layers:
            x = torch.tanh(layer(x) + inputs.second)
        return Pair(x, 2 * x)


def pairs() -> float:
    """Dataclasses in and out, of one form and as alike as can be: in a number that no text shows, in a digit."""
    torch.manual_seed(1)
    example = Pair(torch.randn(2, 8), torch.randn(2, 8))
    net = pararealize(OfPairs(), 2, coarse="linear", example_inputs=(example,)).eval()
    stage = net.distribute(mesh_of(2), timeout=8).eval()
    x, y = torch.randn(2, 300, 8).unbind()
    other = y.clone()
    other[100:200] += 1
    worst = 0.0
    with stage.serve() as server:
        for inputs in [Pair(x, y), Pair(x, other), Pair(x[:1], y[:1]), Pair(x[:1], y[:1] + 1e-3)] if server else []:
            answer, expected = server(inputs), net(inputs)
            worst = max(worst, distance(answer.first, expected.first), distance(answer.second, expected.second))
    return worst


class LabelledBlock(nn.Module):
    """A block with a table of labels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table = nn.Linear(8, 8), nn.Embedding(5, 8)

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return x + self.layer(torch.relu(x + self.table(label)))


class Labelled(nn.Module):
    """Every block reads the labels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(LabelledBlock() for _ in range(4))

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, label)
        return x


def labels() -> float:
    """Labels beyond the table of a block are refused, at a size that has been answered too."""
    torch.manual_seed(1)
    model, example = Labelled().eval(), (torch.randn(2, 8), torch.tensor([0, 1]))
    net = pararealize(model, 2, coarse="linear", example_inputs=example)
    layers = layer_parallel(model, coarsening=2, example_inputs=example, mesh=mesh_of(2)).eval()
    worst = 0.0
    for stage, whole in ((net.eval().distribute(mesh_of(2), timeout=8).eval(), net), (layers, model)):
        with stage.serve() as server:
            if server is None:
                continue
            for label in ([7, 1], [1, 2], [7, 2], [2, 0]):
                inputs = example[0], torch.tensor(label)
                if label[0] == 7:
                    with pytest.raises(RefusedCallError, match="IndexError"):
                        server(*inputs)
                else:
                    answer = server(*inputs)
                    worst = max(worst, distance(answer, net(*inputs)) if whole is net else 0.0)
    return worst


class Counting(nn.Module):
    """A layer that counts its calls, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return torch.tanh(self.linear(x)) + self.calls


def counted() -> list[float]:
    """Trials of inputs leave what the network counts as it is."""
    torch.manual_seed(1)
    net = pararealize(
        nn.Sequential(*(Counting() for _ in range(4))), 2, coarse="linear", example_inputs=torch.ones(2, 8)
    )
    stage = net.eval().distribute(mesh_of(2), timeout=8).eval()
    apart = []
    with stage.serve() as server:
        for x in [] if server is None else [torch.ones(2, 8), torch.ones(3, 8), torch.ones(2, 8)]:
            apart.append(distance(server(x), net(x).detach()))
    return apart


def test_a_trial_leaves_no_trace():
    assert max(on_ranks(2, counted)[0]) < 1e-5


def idle() -> bool:
    """Nobody asks for longer than the time-out of a message; before, train mode is refused on all ranks."""
    stage = network(2).distribute(mesh_of(2), timeout=1.0).train()
    with pytest.raises(DistributedError, match=r"in train mode, and requests are answered in eval mode"), stage.serve():
        pass
    stage.eval()
    with stage.serve() as server:
        if server is not None:
            time.sleep(2.0)
            return server(torch.ones(1, 8)).shape == (1, 2)
    return True


def in_autocast(ranks: int) -> bool:
    """The thread that computes is under the autocast of the one that serves."""
    stage = network(2).distribute(mesh_of(ranks), timeout=8).eval()
    x = torch.ones(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = stage(x, everywhere=True)
        with stage.serve() as server:
            answer = expected if server is None else server(x)
    with stage.serve() as server:
        is_plain = server is None or server(x).dtype == torch.float32
    return is_plain and answer.dtype == torch.bfloat16 and torch.equal(answer, expected)


def by_copy() -> bool:
    """Each copy serves by itself; steps go on however many requests each has answered."""
    stage = network(2).distribute(mesh_of(2, 1), timeout=8)
    step = {"target": torch.ones(2, 2), "loss_fn": nn.functional.mse_loss}
    for _ in range(2):
        stage.step(torch.ones(2, 8), **step)
        if dist.get_rank() == 0:
            with stage.eval().serve() as server:
                server(torch.ones(1, 8))
        stage.train()
    return True


def chained() -> bool:
    """Callbacks run in the thread that computes: they submit requests, and are told so where they would wait."""
    stage = network(2).distribute(mesh_of(2), timeout=8).eval()
    said, answers, added, done = [], [], threading.Event(), threading.Event()
    x = torch.ones(2, 8)

    def forward(x):
        assert stage.rank == 1 or added.wait(8)  # what is added to a future that is done runs in this thread
        return stage(x)

    with stage.serve(forward=forward) as server:
        if server is None:
            return True

        def go_on(answer) -> None:
            for call in (server, lambda x: server.submit(x).result(), stage, lambda _: server.close()):
                try:
                    call(x)
                except DistributedError as error:
                    said.append(str(error))
            following = server.submit(x + answer.result().mean())
            following.add_done_callback(lambda answer: (answers.append(answer.result()), done.set()))

        first = server.submit(x)
        first.add_done_callback(go_on)
        added.set()
        assert done.wait(8)
        assert torch.equal(server(x), first.result())
    return len(answers) == 1 and [("and would wait" in text) for text in said] == [True, True, False, True]


def on_two() -> tuple[float, bool]:
    works = idle() and in_autocast(2) and by_copy() and chained()
    return max(answers(2), nested(), pairs(), labels()), works


def test_two_ranks():
    """Answers are those of one process; nested values, dataclasses, labels; waiting for requests is no hang."""
    results = on_ranks(2, on_two)
    assert max(worst for worst, _ in results) < 1e-5
    assert all(is_alive for _, is_alive in results)


class Striking(nn.Module):
    """A head that strikes at an input of the batch size three, on the rank that owns it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.kind = Perceptron(), kind

    def forward(self, x):
        return strike(self.body(x), self.kind)


@torch.library.custom_op("pararealize_tests::strike", mutates_args=())
def strike(x: torch.Tensor, kind: str) -> torch.Tensor:
    if len(x) == 7:
        os._exit(3) if kind == "die" else time.sleep(1000)
    return x.clone()


@strike.register_fake
def _(x: torch.Tensor, kind: str) -> torch.Tensor:
    return torch.empty_like(x)


def failing(kind: str, folder: str) -> None:
    torch.manual_seed(1)
    net = pararealize(Striking(kind), 2, coarse="linear", example_inputs=torch.randn(2, 8)).eval()
    stage = net.distribute(mesh_of(2), timeout=2.0).eval()
    began = time.monotonic()
    try:
        with stage.serve() as server:
            if server is not None:
                server(torch.ones(1, 8))
                began = time.monotonic()
                pending = [server.submit(torch.ones(size, 8)) for size in (7, 1)]
                faults = [type(one.exception()).__name__ for one in pending]
                with pytest.raises(DistributedError, match="the server has failed"):
                    server(torch.ones(1, 8))
                Path(folder, "faults").write_text(" ".join(faults))
    except RankError as error:
        Path(folder, f"rank{stage.rank}").write_text(f"{error.rank} {time.monotonic() - began:.2f} {error}")
        raise
    assert threading.active_count() < 50


@pytest.mark.parametrize("kind", ["die", "hang"])
def test_a_rank_that_dies_or_hangs_ends_all(kind, tmp_path):
    """Within the time-out, with an error that names it; whoever waits for an answer gets an error, too."""
    with pytest.raises(RanksFailed):
        on_ranks(2, failing, kind, str(tmp_path))
    culprit, seconds, _ = (tmp_path / "rank0").read_text().split(maxsplit=2)
    assert (culprit, float(seconds) < 10) == ("1", True)
    assert (tmp_path / "faults").read_text() == "RankError DistributedError"
