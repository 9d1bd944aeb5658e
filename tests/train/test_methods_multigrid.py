"""Training by multigrid and in one shot through the table of methods: scores are of the model itself."""

import copy
import json

import pytest
import torch
from typer.testing import CliRunner

from pararealize import Recipe, evaluate, fit, layer_parallel
from pararealize.data.catalogue import load
from pararealize.errors import CheckpointError, DistributedError, MultigridError
from pararealize.multigrid.monitor import Monitor
from pararealize.train.methods import Options, build
from pararealize.train.run.history import from_line
from pararealize.train.steps import MonitoredStep
from pararealize_cli.main import app
from tests.chains import Chains


class Peaks(Chains):
    """Two features to five classes."""

    def __init__(self, **kind) -> None:
        super().__init__((8,), (8,), h=0.3, **kind)
        self.stem, self.head = torch.nn.Linear(2, 8), torch.nn.Linear(8, 5)


@pytest.mark.parametrize("method", ["multigrid", "oneshot"])
def test_a_network_is_trained_and_scored_as_it_is(method: str) -> None:
    torch.manual_seed(0)
    model, data = Peaks(), load("peaks", count=(500, 100), batch_size=125)
    options = Options(example_inputs=data.example(), more={"coarsening": 2})
    built = build(method, model, options)
    history = fit(built.net, data, Recipe(epochs=6, lr=0.1, schedule="constant"), step=built.step)
    assert history.epochs[-1].loss < 0.85 * history.epochs[0].loss
    model.load_state_dict(built.net.state_dict())
    assert evaluate(model, data) == history.score
    norms = built.net.history
    assert len(norms) == 24  # no solve for scores
    assert len(norms[-1].forward) == 2
    if method == "oneshot":
        assert norms[-1].forward[0] < norms[0].forward[0]  # begun where the last epoch ended


def test_options_reach_the_network() -> None:
    data = load("peaks", count=(100, 20))
    more = {"levels": 3, "coarsening": 2, "forward_iterations": 4, "backward_iterations": 3, "relaxation": "FCF"}
    net = build("multigrid", Peaks(), Options(example_inputs=data.example(), more=more)).net
    assert (len(net.hierarchy.levels), net.forward_iterations, net.relaxation) == (3, 4, "FCF")
    with pytest.raises(MultigridError, match="levels = 9"):
        build("oneshot", Peaks(), Options(example_inputs=data.example(), more={"levels": 9, "coarsening": 2}))


@pytest.mark.parametrize("method", ["multigrid", "oneshot"])
def test_an_option_that_there_is_not_is_refused(method: str) -> None:
    inputs = torch.randn(4, 2)
    with pytest.raises(
        MultigridError, match=rf"{method}' has no option 'coarsning', 'mesh' in more; there are levels, "
    ):
        build(method, Peaks(), Options(example_inputs=inputs, more={"coarsning": 2, "mesh": None}))
    assert build(method, Peaks(), Options(more={"example_inputs": inputs, "coarsening": 2})).net.structure


WATCH = {"every": 3, "cosine": 0.99999, "residual": 0.15, "exact_after": 9}  # raises after steps 3 and 6


def monitored(model, data, monitor=WATCH):
    more = {"coarsening": 2, "forward_iterations": 1, "monitor": monitor}
    return build("multigrid", model, Options(example_inputs=data.example(), more=more))


def test_a_monitored_run_is_the_loop_written_out() -> None:
    torch.manual_seed(0)
    model, data = Peaks(), load("peaks", count=(500, 100), batch_size=125)
    built = monitored(copy.deepcopy(model), data)
    recipe = Recipe(epochs=3, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant", clip=0.1)
    history = fit(built.net, data, recipe, step=built.step)
    net = layer_parallel(model, 2, 2, 1, example_inputs=data.example())
    monitor, optimizer = Monitor(net, **WATCH), torch.optim.SGD(net.parameters(), lr=0.1)
    wrong = [0, 0, 0]
    for epoch in range(3):
        for x, labels in data.epoch(epoch):
            optimizer.zero_grad()
            output = net(x)
            wrong[epoch] += int((output.argmax(1) != labels).sum())
            torch.nn.functional.cross_entropy(output, labels).backward()
            monitor.check(lambda x=x, labels=labels: torch.nn.functional.cross_entropy(net(x), labels))
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            optimizer.step()
    assert history.events == monitor.events
    assert [row.error for row in history.epochs] == pytest.approx([count / 500 for count in wrong])
    assert [(event.step, event.forward) for event in history.events] == [(3, 2), (6, 3), (9, 0)]
    assert (net.exact, built.net.exact) == (True, True)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(built.net.state_dict()[name], value)
    with net.serially():
        assert evaluate(net, data).loss == pytest.approx(history.score.loss)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("amp, stop", [(None, 5), (None, 11), ("bfloat16", 7), ("float16", 2)])
def test_a_monitored_run_that_is_stopped_goes_on_to_the_bit(tmp_path, amp, stop) -> None:
    data = load("peaks", count=(500, 100), batch_size=125)
    recipe = Recipe(epochs=3, lr=0.1, amp=amp)

    def run(folder, monitor=WATCH, report=None, **options):
        torch.manual_seed(0)
        built = monitored(Peaks(norm=True, drop=0.1), data, monitor)
        folder = tmp_path / folder
        options |= {"folder": folder, "report": report, "checkpoint_every": 3, "log_every": 2}
        fit(built.net, data, recipe, step=built.step, **options)
        return built

    def report(now):
        if now.step == stop:
            raise Stopped

    whole = run("whole")
    assert [event.step for event in whole.step.monitor.events] == [1, 3, 6, 9]
    with pytest.raises(Stopped):
        run("run", report=report)
    again = run("run", resume=True)
    assert again.step.monitor.state_dict() == whole.step.monitor.state_dict()
    for name in ("metrics.jsonl", "weights.safetensors", "run.json", "checkpoints/step-00000012/state.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    rows = [from_line(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row for row in rows if row in whole.step.monitor.events] == whole.step.monitor.events
    with pytest.raises(CheckpointError, match=r"monitor.every: 3 there, 4 here"):
        run("run", WATCH | {"every": 4}, resume=True)
    with pytest.raises(CheckpointError, match=r"monitor: \{'every': 3.*None here"):
        run("run", None, resume=True)


def test_without_a_monitor_checkpoints_have_none(tmp_path) -> None:
    data = load("peaks", count=(100, 20))
    built = monitored(Peaks(), data, monitor=False)
    assert built.step is None
    fit(built.net, data, Recipe(epochs=1), folder=tmp_path / "run")
    (state,) = (tmp_path / "run").glob("checkpoints/*/state.json")
    assert "monitor" not in json.loads(state.read_text())
    assert "monitor" not in json.loads((tmp_path / "run" / "run.json").read_text())


class Mesh:
    def size(self):
        return 2


def test_monitors_that_cannot_be() -> None:
    data = load("peaks", count=(100, 20))
    for told, monitor in (
        ("monitor is 3; pass True", 3),
        ("no setting 'evry'", {"evry": 3}),
        ("every is 0", {"every": 0}),
    ):
        with pytest.raises(MultigridError, match=told):
            monitored(Peaks(), data, monitor)
    with pytest.raises(MultigridError, match="'oneshot' keeps its few iterations"):
        build("oneshot", Peaks(), Options(example_inputs=data.example(), more={"monitor": True}))
    with pytest.raises(DistributedError, match="a monitor watches layers of one process, and here are 2"):
        build("multigrid", Peaks(), Options(mesh=Mesh(), more={"monitor": True}))
    step = MonitoredStep(monitored(Peaks(), data).step.monitor)
    with pytest.raises(MultigridError, match="is not the network to be trained"):
        fit(monitored(Peaks(), data).net, data, Recipe(epochs=1), step=step)


def test_the_command(tmp_path) -> None:
    out = tmp_path / "run"
    command = ["train", "resnet20", "--data", "digits", "--image-size", "8", "--epochs", "1", "--batch-size", "720"]
    options = ["--method", "multigrid", "--coarsening", "2", "--iterations", "1/1", "--out", str(out)]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    assert (out / "weights.safetensors").exists()
    result = CliRunner().invoke(
        app, [*command, "--method", "multigrid", "--iterations", "two", "--out", str(out / "x")]
    )
    assert result.exit_code != 0
    assert "such as 2/1" in result.output
    result = CliRunner().invoke(app, [*command, "--method", "multigrid", "--coarsening", "9", "--out", str(out / "x")])
    assert result.exit_code != 0
    assert "--coarsening 9 is larger" in result.output
