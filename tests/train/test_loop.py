"""Training: against a loop written out, what a run writes, what it refuses, and where it stops."""

import errno
import json
import math
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pararealize import Recipe, evaluate, fit, pararealize, run_local
from pararealize.data.dataset import Dataset
from pararealize.errors import CheckpointError, ExampleError, OutputError, RecipeError, TrainingError
from pararealize.train.run.history import from_line
from tests.nested_inputs import Tabular, table
from tests.training import chain, network, same, samples

RECIPE = Recipe(epochs=3, lr=0.05, clip=1.0)


def by_hand(net, data, recipe):
    """The same training without the library's loop; gives test errors."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    errors, step = [], 0
    for epoch in range(recipe.epochs):
        net.train()
        for x, labels in data.epoch(epoch):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(step, steps=recipe.epochs * data.steps)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), labels).backward()
            norms = [parameter.grad.norm().double() for parameter in net.parameters()]
            nn.utils.clip_grads_with_norm_(net.parameters(), recipe.clip, torch.stack(norms).norm())
            optimizer.step()
            step += 1
        net.eval()
        wrong = net(data.test_images).argmax(1) != data.test_labels
        errors.append(wrong.double().mean().item())
    return errors


def test_a_run_is_the_loop_written_out():
    net, twin = network(dropout=0.0), network(dropout=0.0)
    history = fit(net, samples(), RECIPE)
    assert [row.test_error for row in history.epochs] == pytest.approx(by_hand(twin, samples(), RECIPE))
    assert same(net, twin)
    assert net.training
    assert history.score == evaluate(net, samples())


def test_it_learns():
    history = fit(network(dropout=0.0), samples(train=120), Recipe(epochs=12, lr=0.05, schedule="cosine"))
    assert history.score.error < 0.3  # of 0.67 by chance


def test_rows_are_means_over_their_steps():
    net, twin = network(dropout=0.0), network(dropout=0.0)
    history = fit(net, samples(), Recipe(epochs=1), log_every=2)
    losses = []
    optimizer = Recipe().make_optimizer(twin.parameters())
    for (x, labels), lr in zip(samples().epoch(0), [0.1, 0.1, 0.01, 0.001, 0.001], strict=True):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(twin(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [(row.step, row.epoch) for row in history.steps] == [(2, 1), (4, 1)]
    assert [row.loss for row in history.steps] == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:4]) / 2])
    assert history.epochs[0].loss == pytest.approx(sum(losses) / 5)
    assert [row.lr for row in history.steps] == pytest.approx([0.1, 0.001])


@pytest.mark.parametrize("make", [chain, network, lambda: run_local(network(), stack=True)])
def test_one_seed_one_result(make):
    nets = [make(), make(), make()]
    for net, seed in zip(nets, [0, 0, 1], strict=True):
        fit(net, samples(), RECIPE, seed=seed)
    assert same(nets[0], nets[1])
    assert not same(nets[0], nets[2])  # other dropouts


def test_the_callers_random_state_stays():
    net = network()
    before = torch.get_rng_state(), random.getstate()
    fit(net, samples(), Recipe(epochs=1, initialise="he"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_he_weights_are_drawn_where_the_recipe_says_so():
    model = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 64, 5), nn.Flatten(), nn.Linear(256, 3))
    weight = model[1].weight
    before = weight.clone()
    fit(model, samples(), Recipe(epochs=1, lr=1e-12, momentum=0.0))
    assert torch.equal(weight, before)
    fit(model, samples(), Recipe(epochs=1, lr=1e-12, momentum=0.0, initialise="he"))
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 5)), rel=0.2)


def test_what_a_run_writes(tmp_path):
    reports = []
    net = network()
    history = fit(net, samples(), RECIPE, folder=tmp_path / "run", report=reports.append, log_every=2,
                  checkpoint_every=3, tensorboard=True)  # fmt: skip
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "latest.json", "plan.json", "metrics.jsonl", "times.jsonl", "checkpoints", "curves.svg",
        "weights.safetensors", "tensorboard", "network",
    }  # fmt: skip
    assert same(load_file(folder / "weights.safetensors"), net)
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-00000012", "step-00000015"]
    assert [from_line(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == history.rows
    assert json.loads((folder / "run.json").read_text())["recipe"] == RECIPE.to_dict()
    assert [report.step for report in reports] == list(range(1, 16))
    assert [report.score is not None for report in reports] == [step % 5 == 0 for step in range(1, 16)]
    assert reports[-1].left == 0
    times = [json.loads(line) for line in (folder / "times.jsonl").read_text().splitlines()]
    assert [row["step"] for row in times] == sorted({*range(2, 16, 2), 5, 10, 15})


def test_a_second_run_needs_leave(tmp_path):
    fit(network(), samples(), RECIPE, folder=tmp_path / "run")
    with pytest.raises(OutputError, match="is there already"):
        fit(network(), samples(), RECIPE, folder=tmp_path / "run")
    net = network()
    fit(net, samples(), RECIPE, folder=tmp_path / "run", force=True)
    again = network()
    history = fit(again, samples(), RECIPE, folder=tmp_path / "run", resume=True)  # of a run that is over
    assert same(again, net)
    assert history.score == evaluate(net, samples())
    assert len(history.epochs) == 3


class Counting(nn.Linear):
    def get_extra_state(self):
        return {"calls": 0}

    def set_extra_state(self, state):
        pass


def test_a_state_that_cannot_be_kept_is_refused_before_the_first_step(tmp_path):
    net = nn.Sequential(Counting(8, 3))
    steps = []
    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint: 0\._extra_state no tensors"):
        fit(net, samples(), RECIPE, folder=tmp_path / "run", report=steps.append)
    assert steps == []
    assert not (tmp_path / "run").exists()
    assert fit(net, samples(), RECIPE).score.count == 13  # without a folder nothing is kept


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_fails_in_its_first_step_leaves_nothing(tmp_path, there):
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    with pytest.raises(ExampleError, match=r"logits of 2 classes and the data has 3"):
        fit(nn.Sequential(nn.Linear(8, 2)), samples(), RECIPE, folder=folder, tensorboard=True)
    assert folder.exists() == there
    assert not there or list(folder.iterdir()) == []


def test_a_run_that_was_there_stays_whatever_comes_of_going_on(tmp_path):
    folder = tmp_path / "run"
    fit(network(), samples(), RECIPE, folder=folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(CheckpointError, match=r"asked for something else"):
        fit(network(), samples(), Recipe(epochs=3, lr=0.2), folder=folder, resume=True)
    assert sorted(folder.rglob("*")) == before


def frozen(net):
    net.get_parameter("0.weight").requires_grad_(False)
    return net


CHANGES = {
    "recipe.lr: 0.05 there, 0.1 here": lambda: (network(), samples(), Recipe(epochs=3, clip=1.0), {}),
    "seed: 0 there, 1 here": lambda: (network(), samples(), RECIPE, {"seed": 1}),
    "log_every: 10 there, 5 here": lambda: (network(), samples(), RECIPE, {"log_every": 5}),
    r"data.samples: \[40, 13\] there, \[41, 12\] here": lambda: (
        network(), samples(train=41, test=12), RECIPE, {},
    ),
    "data.batch_size: 8 there, 4 here": lambda: (network(), samples(batch_size=4), RECIPE, {}),
    "data.seed: 0 there, 5 here": lambda: (network(), samples(seed=5), RECIPE, {}),
    "network.tensors: .*plan.n: 3 there, 2 here": lambda: (network(2), samples(), RECIPE, {}),
    "plan.segments begin at: ": lambda: (network(cuts=["4", "12"]), samples(), RECIPE, {}),
    r"plan.coarse blocks: \['linear', 'linear'\] there": lambda: (network(coarse="block"), samples(), RECIPE, {}),
    "plan: {'n': 3.*there, None here": lambda: (chain(), samples(), RECIPE, {}),
    r"structure.modules.Dropout\(p=0.1, inplace=False\): 6 there, None here": lambda: (
        network(cuts=["8", "16"], dropout=0.2), samples(), RECIPE, {},
    ),
    "structure.tensors.kept torch.float32: 12 there, 13 here": lambda: (
        frozen(network(cuts=["8", "16"])), samples(), RECIPE, {},
    ),
    "about.model: None there, 'other' here": lambda: (network(), samples(), RECIPE, {"about": {"model": "other"}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def run_that_is_over(tmp_path_factory):
    folder = tmp_path_factory.mktemp("over") / "run"
    fit(network(cuts=["8", "16"]), samples(), RECIPE, folder=folder)
    return folder


@pytest.mark.parametrize("told", CHANGES)
def test_another_run_is_refused(run_that_is_over, told):
    net, data, recipe, options = CHANGES[told]()
    files = {path: path.read_bytes() for path in run_that_is_over.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=told):
        fit(net, data, recipe, folder=run_that_is_over, resume=True, **options)
    assert {path: path.read_bytes() for path in run_that_is_over.rglob("*") if path.is_file()} == files


class Stopped(Exception):
    pass


def stop_after(step):
    def report(now):
        if now.step == step:
            raise Stopped

    return report


@pytest.mark.parametrize("amp, step", [(None, 1), ("bfloat16", 5), (None, 8), ("float16", 14)])
def test_a_run_that_is_stopped_goes_on_to_the_bit(tmp_path, amp, step):
    recipe = Recipe(epochs=3, lr=0.05, amp=amp, optimizer="adamw" if step == 8 else "sgd", initialise="he")
    whole = network()
    fit(whole, samples(), recipe, folder=tmp_path / "whole", checkpoint_every=3, log_every=2)
    with pytest.raises(Stopped):
        fit(network(), samples(), recipe, folder=tmp_path / "run", checkpoint_every=3, log_every=2,
            report=stop_after(step))  # fmt: skip
    net = network()
    fit(net, samples(), recipe, folder=tmp_path / "run", checkpoint_every=3, log_every=2, resume=True)
    assert same(net, whole)
    for name in ("metrics.jsonl", "weights.safetensors", "run.json", "checkpoints/step-00000015/state.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_a_network_draws_outside_of_torch_goes_on_too(tmp_path):
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = chain()

        def forward(self, x):
            return self.inner(x) * (1 + random.random()) if self.training else self.inner(x)

    whole, net = Drawing(), Drawing()
    fit(whole, samples(), RECIPE)
    with pytest.raises(Stopped):
        fit(Drawing(), samples(), RECIPE, folder=tmp_path / "run", report=stop_after(7))
    fit(net, samples(), RECIPE, folder=tmp_path / "run", resume=True)
    assert same(net, whole)


# Faults --------------------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    from pararealize.train.run import checkpoint

    save, calls = checkpoint.save_file, []

    def full(values, path):
        calls.append(path)
        if len(calls) == 4:  # the second file of the second checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")
        save(values, path)

    whole = network()
    fit(whole, samples(), RECIPE, folder=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(OutputError, match=r"No space left on device; the last checkpoint, step-00000005, is as it"):
            fit(network(), samples(), RECIPE, folder=tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000005"]
    net = network()
    fit(net, samples(), RECIPE, folder=tmp_path / "run", resume=True)
    assert same(net, whole)


@pytest.mark.parametrize("what", ["", "metrics.jsonl", "checkpoints"])
def test_a_lost_folder_ends_a_run(tmp_path, what):
    def report(now):
        if now.step == 7:
            lost = tmp_path / "run" / what
            shutil.rmtree(lost) if lost.is_dir() else lost.unlink()

    with pytest.raises(OutputError, match="cannot write" if what else "is gone"):
        fit(network(), samples(), RECIPE, folder=tmp_path / "run", report=report)
    assert (tmp_path / "run").exists() == bool(what)


def test_a_damaged_checkpoint_is_told_and_the_one_before_serves(tmp_path):
    whole = network()
    fit(whole, samples(), RECIPE, folder=tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "step-00000015"
    (last / "state.json").write_text("{")
    told = "step-00000015' is damaged: state.json is not what was written.*step-00000010, is intact: .* resume_from="
    with pytest.raises(CheckpointError, match=told):
        fit(network(), samples(), RECIPE, folder=tmp_path / "run", resume=True)
    net = network()
    fit(net, samples(), RECIPE, folder=tmp_path / "run", resume_from="previous")
    assert same(net, whole)
    names = {path.name for path in last.parent.iterdir()}
    assert names == {"step-00000010", "step-00000015", "damaged-step-00000015"}


def spoiled(net, part, calls, spoil):
    """From this call on, a part gives something else."""
    seen = []

    def hook(_, __, y):
        seen.append(y)
        return spoil(y) if len(seen) >= calls and net.training else y

    net.get_submodule(part).register_forward_hook(hook)
    return net


def test_a_loss_that_is_not_finite_stops_with_step_and_segment(tmp_path):
    net = spoiled(network(), "segments.g2", 8, lambda y: y * math.inf)
    with pytest.raises(TrainingError, match=r"the loss of step 7 \(epoch 2, batch 2\) is nan: the forward pass became "
                       r"non-finite first, beginning in segment 2 \(\S+ to \S+\); the last checkpoint is "
                       r"'.*step-00000005'; lower the learning rate") as caught:  # fmt: skip
        fit(net, samples(test=6), RECIPE, folder=tmp_path / "run")
    assert caught.value.step == 7
    assert caught.value.where.startswith("segment 2")


def test_gradients_that_are_not_finite_stop_before_the_weights(tmp_path):
    def cursed(y):
        y.register_hook(lambda gradient: gradient * math.nan)
        return y

    net = spoiled(network(), "segments.g3", 3, cursed)
    kept = []
    with pytest.raises(TrainingError, match=r"the gradients' norm of step 3 \(epoch 1, batch 3\) is nan: the gradients "
                       r"became non-finite first, beginning in segment 3 .*; there is no checkpoint"):  # fmt: skip
        fit(net, samples(), RECIPE, report=lambda _: kept.append([p.clone() for p in net.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), kept[-1], strict=True))


def test_clipping_does_not_hide_where_gradients_became_non_finite():
    net = network()
    net.get_parameter("0.weight").register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(
        TrainingError, match=r"gradients became non-finite first, beginning in segment 1 .*, at 0.weight"
    ):
        fit(net, samples(), Recipe(epochs=1, clip=1.0))


def test_a_learning_rate_that_is_too_large_is_seen():
    with pytest.raises(TrainingError, match=r"(loss|gradients' norm) of step \d+ .* lower the learning rate"):
        fit(nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)]), samples(), Recipe(epochs=9, lr=1e9))


@pytest.mark.parametrize("name", ["log_every", "checkpoint_every", "keep"])
def test_numbers_that_make_no_sense(name):
    with pytest.raises(RecipeError, match=rf"{name} is -1; pass an integer of at least 1"):
        fit(network(), samples(), RECIPE, **{name: -1})


class Rows:
    """Samples that are dicts of tensors."""

    def __init__(self, batch):
        self.batch = batch
        self.shape = (len(batch["num"]), 3)

    def __getitem__(self, numbers):
        return {name: tensor[numbers] for name, tensor in self.batch.items()}


def test_batches_may_be_dicts():
    torch.manual_seed(0)
    rows, more = table(40, torch.float32), table(10, torch.float32)
    labels, more_labels = (batch["cat"].sum(1) % 2 for batch in (rows, more))
    data = Dataset(
        name="rows", classes=2, batch_size=10, seed=0,
        images=Rows(rows), labels=labels, test_images=Rows(more), test_labels=more_labels,
    )  # fmt: skip
    net = pararealize(Tabular(), n=2, example_inputs=data.example(), coarse="linear")
    history = fit(net, data, Recipe(epochs=30, lr=0.05, warmup=0))
    losses = [row.loss for row in history.epochs]
    assert losses[-1] < 0.7 * losses[0]
    assert evaluate(net, data).count == 10
