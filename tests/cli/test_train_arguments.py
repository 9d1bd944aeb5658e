"""Words of ``pararealize train``, and what they stand for."""

from pathlib import Path

import pytest

from pararealize.errors import MultigridError, PlanError, RecipeError
from pararealize_cli import train_arguments
from pararealize_cli.train_options import Amp


def test_words_of_the_recipe():
    assert train_arguments.milestones(None) is None
    assert train_arguments.milestones("80, 120,") == (80.0, 120.0)
    with pytest.raises(RecipeError, match=r"--milestones 'late'.*such as 80,120"):
        train_arguments.milestones("late")
    assert train_arguments.iterations(None) == {}
    assert train_arguments.iterations("12/3") == {"forward_iterations": 12, "backward_iterations": 3}
    with pytest.raises(MultigridError, match=r"--iterations '2/1/1'.*such as 2/1"):
        train_arguments.iterations("2/1/1")


@pytest.mark.parametrize("given, method, told", [
    (["n"], "serial", "--n: nothing that --method serial reads, but of --method parareal; leave it out"),
    (["seed", "sequential", "coarse"], "multigrid", "--coarse, --sequential: .*of --method parareal; leave them out"),
    (["levels", "n"], "parareal", "--levels: .*of --method multigrid or oneshot"),
    (["ranks"], "parareal", "--ranks says how several processes share.*this one is alone; start them with torchrun"),
])  # fmt: skip
def test_options_that_would_change_nothing_are_refused(given, method, told):
    with pytest.raises(PlanError, match=told):
        train_arguments.check_used(given, method=method, by_torchrun=False)


def test_words_of_the_monitor():
    run = {"method": "multigrid", "steps": 100, "epochs": 10}
    assert train_arguments.monitor(False, None, None, **run) == {}
    assert train_arguments.monitor(True, None, None, **run) == {"monitor": {"every": 50, "exact_after": 800}}
    assert train_arguments.monitor(True, 7, 0.0, **run) == {"monitor": {"every": 7}}
    assert train_arguments.monitor(True, 7, 1.0, **run) == {"monitor": {"every": 7, "exact_after": 1}}
    with pytest.raises(MultigridError, match=r"the method is 'serial'; add --method multigrid"):
        train_arguments.monitor(True, None, None, **run | {"method": "serial"})
    for every, exact, option in ((3, None, "--monitor-every"), (None, 0.5, "--monitor-exact")):
        with pytest.raises(MultigridError, match=rf"{option} says how to monitor.*add --monitor"):
            train_arguments.monitor(False, every, exact, **run)


@pytest.mark.parametrize("amp, devices, expected", [
    (Amp.off, "cuda:0", None), (Amp.float16, None, "float16"), (Amp.bfloat16, "cuda:0", "bfloat16"),
    (Amp.auto, None, "bfloat16"), (Amp.auto, "cpu", "bfloat16"), (Amp.auto, "cuda:0,cuda:1", "float16"),
])  # fmt: skip
def test_precisions(amp, devices, expected):
    assert train_arguments.precision(amp, devices, None) == expected


def test_what_goes_by_the_name_of_the_model():
    names = ["resnet20", "torchvision:resnet18", "timm:convnext_atto", "nets.py:net", "nets:net"]
    assert [train_arguments.takes_classes(name) for name in names] == [True, True, True, False, False]
    assert train_arguments.folder(None, "a/nets.py:net", "parareal", 3, "digits") == Path("a-nets.py-net-n3-digits")
    assert train_arguments.folder(None, "resnet20", "serial", 3, "digits") == Path("resnet20-serial-digits")
    assert train_arguments.folder(Path("there"), "resnet20", "serial", 3, "digits") == Path("there")
    with pytest.raises(PlanError, match=r"'parareal' needs --n"):
        train_arguments.mesh("parareal", None, None, None, 60.0)
