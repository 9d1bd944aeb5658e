"""Training by multigrid and in one shot through the table of methods: scores are of the model itself."""

import pytest
import torch
from test_mgrit import Chains
from typer.testing import CliRunner

from pararealize import Recipe, evaluate, fit
from pararealize.data import load
from pararealize.errors import MultigridError
from pararealize.methods import Options, build
from pararealize_cli.main import app


class Peaks(Chains):
    """Two features to five classes."""

    def __init__(self) -> None:
        super().__init__((8,), (8,), h=0.3)
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
    assert "coarsening = 9" in result.output
