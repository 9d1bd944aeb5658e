"""Folders of training runs that were stopped: gone on with, to the end.

What ends is right where it has the bits of the run that was never stopped, weights and metrics: whether it went on from
the last checkpoint, from one before it, or began anew. Where a changed state was given new digests ("sealed"), it goes
on with what was changed, and only errors are looked at.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file
from torch import nn

from pararealize import Recipe, fit, pararealize
from pararealize.data.dataset import Dataset
from pararealize.manifest import MANIFEST, write_manifest

from ..mutations import mutated_json
from ..trial import Trial
from .folders import change_folder, change_tensors

__all__ = ["RunFolders"]

WIDTH, CLASSES = 4, 3
STOP, LAST = 12, 15  # steps after which the run was stopped, and of the whole run
ENDS = 0.1  # share of the cases that come to the end, with curves, which take nine tenths of the time to draw
RECIPE = Recipe(epochs=3, lr=0.05)
SEALED = 0.15  # share of the cases in which a changed state gets new digests


class Stopped(Exception):  # noqa: N818 (no error of anyone's)
    """Ends a run."""


def _data() -> Dataset:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(50) % CLASSES
    x = torch.randn(50, WIDTH, generator=generator) + 2 * torch.eye(WIDTH)[labels]
    return Dataset(
        name="centres",
        classes=CLASSES,
        batch_size=8,
        seed=0,
        images=x[:40],
        labels=labels[:40],
        test_images=x[40:],
        test_labels=labels[40:],
    )


def _network(seed: int, *, segments: bool) -> nn.Module:
    torch.manual_seed(seed)
    blocks = [
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh(), nn.Dropout(0.1)) for _ in range(4)
    ]
    model = nn.Sequential(*blocks)
    return pararealize(model, 2, coarse="linear", example_inputs=torch.zeros(2, WIDTH)) if segments else model


def _run(folder: Path, seed: int, *, segments: bool, resume_from: str = "", stop: int = 0) -> nn.Module:
    def report(progress: object) -> None:
        if getattr(progress, "step", 0) == stop:
            raise Stopped

    net = _network(seed, segments=segments)
    how = {"resume": bool(resume_from), "resume_from": resume_from or "last"}
    with contextlib.suppress(Stopped):
        fit(net, _data(), RECIPE, folder=folder, checkpoint_every=3, log_every=2, keep=2, report=report, **how)  # type: ignore[arg-type]
    return net


class RunFolders:
    """Runs of an ordinary model and of two segments, stopped at a step; beside each one of other first weights."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="fuzz-runs-"))
        for segments in (False, True):
            for seed in (0, 1):
                folder = self.root / f"{segments}{seed}"
                _run(folder / "whole", seed, segments=segments)
                _run(folder / "run", seed, segments=segments, stop=STOP)
                (folder / "run" / "curves.svg").write_text("<svg/>")
                shutil.copy(folder / "whole" / "weights.safetensors", folder / "run")  # of an earlier end

    def __del__(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def __call__(self, random: Random, folder: Path) -> Trial:
        segments = random.random() < 0.2
        whole, run = self.root / f"{segments}0" / "whole", folder / "run"
        shutil.copytree(self.root / f"{segments}0" / "run", run, symlinks=True)
        sealed = random.random() < SEALED
        if sealed:
            change = _sealed(run, random)
        else:
            others = [self.root / f"{segments}1" / "run", whole]
            change = "; ".join(change_folder(run, others, random) for _ in range(random.choice((1, 1, 1, 1, 2))))
        resume_from = random.choice(("last", "previous"))
        stop = 0 if random.random() < ENDS else LAST

        def attempt() -> str:
            net = _run(run, 0, segments=segments, resume_from=resume_from, stop=stop)
            if sealed:
                return ""
            expected, state = load_file(whole / "weights.safetensors"), net.state_dict()
            if differing := [name for name, value in expected.items() if not torch.equal(state[name], value)]:
                return f"{len(differing)} tensors are others than those of the whole run: {differing[:3]}"
            if (run / "metrics.jsonl").read_bytes() != (whole / "metrics.jsonl").read_bytes():
                return "the metrics are not those of the whole run"
            return ""

        return Trial(change=f"{change}; {resume_from}", attempt=attempt)


def _sealed(run: Path, random: Random) -> str:
    """Change the state of the last checkpoint, or its lines, and write digests that fit."""
    checkpoint = max((run / "checkpoints").iterdir())
    facts = json.loads((checkpoint / MANIFEST).read_text())
    if random.random() < 0.7:
        file = checkpoint / "state.json"
        mutation = mutated_json(file.read_bytes(), random)
        file.write_bytes(mutation.content)
        change = f"state.json: {mutation.change}"
    else:
        change = change_tensors(checkpoint / random.choice(("state.safetensors", "weights.safetensors")), random)
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint, facts["holds"], facts["facts"])
    return f"sealed: {change}"
