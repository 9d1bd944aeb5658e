"""Kill -9 at any moment, and a disk that is really full: the run goes on, and ends with the bits of a whole one."""

import os
import random
import resource
import time

import pytest
import torch
from safetensors.torch import load_file

from pararealize import Recipe, fit
from pararealize.errors import OutputError
from tests.ranks import CONTEXT
from tests.training import network, same, samples

RECIPE = Recipe(epochs=4, lr=0.05)
SECONDS = 60
FILES = ("metrics.jsonl", "weights.safetensors", "run.json", "checkpoints/step-00000020/weights.safetensors")


def train(folder, pipe=None):
    """The run, in a process of its own, which tells each of its steps."""
    torch.set_num_threads(1)
    report = None if pipe is None else lambda now: pipe.send(now.step)
    fit(network(), samples(), RECIPE, folder=folder, resume=True, checkpoint_every=2, log_every=3, report=report)


def killed(folder, step, wait):
    """Start the run or go on with it, and kill it some moments after a step; whether it was killed in time."""
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=train, args=(folder, there))
    process.start()
    there.close()
    try:
        taken = 0
        while taken < step:
            assert here.poll(SECONDS), "the run hangs"
            try:
                taken = here.recv()
            except EOFError:
                break
        time.sleep(wait)
    finally:
        process.kill()
        process.join()
        here.close()
    return process.exitcode < 0


@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_goes_on_to_the_bit(tmp_path, seed):
    whole = tmp_path / "whole"
    train(whole)
    generator = random.Random(seed)
    kills = [
        killed(tmp_path / "run", step, generator.uniform(0, 0.03)) for step in (generator.randint(0, 4), 7, 12, 19)
    ]
    assert sum(kills) >= 3
    train(tmp_path / "run")
    for name in FILES:
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name


class Killed(BaseException):
    """In place of the process's end."""


@pytest.mark.parametrize("number", range(9, 26, 3))
def test_no_moment_of_writing_is_dangerous(tmp_path, monkeypatch, number):
    """The run ends at each call in turn that puts something on the disk or renames it, and nothing is cleaned up."""
    from pathlib import Path

    from pararealize import files
    from pararealize.train.run import run_folder

    whole, net = network(), network()
    fit(whole, samples(), Recipe(epochs=2), folder=tmp_path / "whole")
    calls = []

    def dying(work):
        def call(*args):
            calls.append(work)
            if len(calls) == number:  # the first seven are of the beginning; 16 and 25 end a checkpoint
                raise Killed
            return work(*args)

        return call

    with monkeypatch.context() as patch:
        for module in (files, run_folder):
            patch.setattr(module, "sync", dying(files.sync))
        for name in ("rename", "replace"):
            patch.setattr(Path, name, dying(getattr(Path, name)))
        patch.setattr(files, "remove", lambda _: None)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            fit(network(), samples(), Recipe(epochs=2), folder=tmp_path / "run")
    fit(net, samples(), Recipe(epochs=2), folder=tmp_path / "run", resume=True)
    assert same(net, whole)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def limited(folder, pipe):
    """The run, with no file larger than the metrics."""
    torch.set_num_threads(1)
    fit(network(), samples(), Recipe(epochs=1), folder=folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
    try:
        fit(network(), samples(), Recipe(epochs=2), folder=f"{folder}-2")
    except OutputError as error:
        pipe.send(str(error))
    os._exit(0)


def test_a_file_that_the_system_does_not_write_in_full(tmp_path):
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=limited, args=(str(tmp_path / "run"), there))
    process.start()
    there.close()
    try:
        assert here.poll(SECONDS)
        told = here.recv()
    finally:
        process.kill()
        process.join()
    assert "cannot write the checkpoint of step 5" in told
    assert "there is no checkpoint yet" in told
    assert list((tmp_path / "run-2" / "checkpoints").iterdir()) == []
    assert load_file(tmp_path / "run" / "weights.safetensors")
