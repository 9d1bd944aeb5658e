"""Training with steps that are CUDA graphs is training: in one process and over ranks; on a double of CUDA."""

import dataclasses

import pytest
import torch
import torch.distributed as dist

from pararealize import Recipe, fit
from pararealize.distributed.checkpoint.state import gather_state_dict
from pararealize.errors import DeviceError, ModelError
from pararealize.train import CapturedStep
from tests.cuda_double import cuda_on_the_cpu
from tests.network.local.test_module import MACHINES, machine
from tests.rank_comparison import mesh_of
from tests.ranks import on_ranks
from tests.training import network, same, samples

RAGGED = {"batch_size": 16}  # 40 samples: 16, 16 and 8


@pytest.mark.parametrize("device", MACHINES)
@pytest.mark.parametrize("amp", [None, "bfloat16", "float16"])
def test_captured_steps_train_to_the_same_bits(amp, device):
    recipe = Recipe(epochs=2, lr=0.05, clip=1.0, amp=amp, optimizer="adamw")
    dropout = 0.0 if device == "cuda" else 0.1  # a GPU's numbers follow from how many were drawn before
    net, twin = network(dropout=dropout).to(device), network(dropout=dropout).to(device)
    expected = fit(twin, samples(**RAGGED), recipe, log_every=1)
    with machine(device):
        step = CapturedStep(net)
        history = fit(net, samples(**RAGGED), recipe, step=step, log_every=1)
    if device == "cpu":
        assert same(net, twin)
        assert history.rows == expected.rows
    else:
        for name, value in twin.state_dict().items():
            torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-2, atol=1e-3)
    assert dataclasses.asdict(step.counts) == {"replayed": 4, "eager": 2}


class Stopped(Exception):
    pass


def test_a_run_goes_on_to_the_same_bits(tmp_path):
    """From behind the last, smaller batch of an epoch, and from within one, before that batch."""
    recipe = Recipe(epochs=3, lr=0.05)
    twin = network()
    fit(twin, samples(**RAGGED), recipe)
    for last in (3, 5):

        def report(now, last=last):
            if now.step == last:
                raise Stopped

        with cuda_on_the_cpu():
            net, folder = network(), tmp_path / str(last)
            with pytest.raises(Stopped):
                fit(
                    net, samples(**RAGGED), recipe, folder=folder, report=report, step=CapturedStep(net),
                    checkpoint_every=1,
                )  # fmt: skip
            net = network()
            fit(net, samples(**RAGGED), recipe, folder=folder, resume=True, step=CapturedStep(net), checkpoint_every=1)
        assert same(net, twin)


def train_stage() -> tuple[dict[str, list[float]], dict[str, int], float]:
    net = network(norm=torch.nn.LayerNorm, dropout=0.0)
    stage = net.distribute(mesh_of(dist.get_world_size()), timeout=30)
    with cuda_on_the_cpu():
        step = CapturedStep(stage)
        history = fit(stage, samples(**RAGGED), Recipe(epochs=2, lr=0.05, clip=1.0), step=step)
    assert history.score is not None
    state = {name: value.tolist() for name, value in gather_state_dict(stage).items()}
    return state, dataclasses.asdict(step.counts), history.score.loss


def test_captured_ranks_are_trained_as_one_process() -> None:
    net = network(norm=torch.nn.LayerNorm, dropout=0.0)
    score = fit(net, samples(**RAGGED), Recipe(epochs=2, lr=0.05, clip=1.0)).score
    results = on_ranks(2, train_stage)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(torch.tensor(results[0][0][name]), value)
    for _, counts, loss in results:
        assert counts == {"replayed": 4, "eager": 2}  # each size is captured behind its first step
        assert loss == pytest.approx(score.loss)


def test_what_is_refused():
    net = network()
    with pytest.raises(DeviceError, match="need a network on GPUs"):
        CapturedStep(net)
    with cuda_on_the_cpu(), pytest.raises(ModelError, match="that is not the network to be trained"):
        fit(network(), samples(), Recipe(epochs=1), step=CapturedStep(net))
