"""The harness of the benchmarks: a row for what works, for what is refused, for what is wrong and for what breaks."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no installed package

from benchmarks import harness
from benchmarks.compile import __main__ as compiling
from benchmarks.compile import measure as compile_measure
from benchmarks.coverage import cases, check, tables
from benchmarks.coverage.hugging_face import HUGGING_FACE
from benchmarks.coverage.public_style import PUBLIC_STYLE
from benchmarks.coverage.tensors import call, floating
from benchmarks.memory import __main__ as memory_command
from benchmarks.memory import measure as memory
from benchmarks.processes import tables as process_tables
from pararealize import PararealModule
from pararealize.errors import CaptureError

ROOT = Path(__file__).parents[2]


class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear, self.dropout = nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Dropout(0.5)

    def forward(self, x):
        return x + self.dropout(self.linear(self.norm(x)))


class ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else x


def row_of(*layers, inputs=None, others=None):
    inputs = torch.randn(4, 6) if inputs is None else inputs
    return check.check(cases.Case(model=nn.Sequential(*layers), inputs=inputs, others=others or {}))


def test_a_model_that_converts():
    row = row_of(*(Unit() for _ in range(5)), others={"7 rows": torch.randn(7, 6), "too wide": torch.randn(4, 7)})
    assert "failed" not in row
    assert (row["n"], row["blocks"], row["kinds"], row["exact"]) == (4, 5, "Unit × 5", True)
    assert row["new_parameters"] > 0
    assert row["columns"] == dict.fromkeys(tables.COLUMNS, "right") | {"causality": "–"}
    assert row["sizes"] == ["7 rows"]  # the original takes no other


def test_n_is_the_most_blocks_there_are():
    assert row_of(Unit(), Unit())["n"] == 2


def test_a_model_on_the_meta_device():
    model = nn.Sequential(*(Unit() for _ in range(4))).to("meta")
    row = check.check(cases.Case(model=model, inputs=torch.empty(4, 6, device="meta")))
    assert "failed" not in row
    assert row["meta"]
    assert row["columns"] == dict.fromkeys(tables.COLUMNS, "–") | {"trained": "right"}


def test_a_refusal_keeps_its_error():
    row = check.check(cases.Case(model=ByValue(), inputs=torch.randn(4, 6)))
    assert row["failed"] == "refused"
    assert row["stage"] == "capture"
    assert row["error"].startswith("CaptureError: ")


class Late(torch.autograd.Function):
    """The identity, with half of the gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


def _bent(hook, *, n):
    """A conversion whose outputs another function has changed, with n = 1 only, or with more segments only."""

    def convert_and_bend(model, segments, **options):
        net = convert(model, segments, **options)
        if (segments == 1) == (n == 1):
            net.register_forward_hook(hook)
        return net

    convert = check.convert
    return convert_and_bend


def _in_mode(training):
    return lambda module, _, y: y + 1 if module.training == training else y


def _in_its_second_call():
    calls = []
    return lambda _module, _, y: calls.append(1) or (y + 1 if len(calls) > 1 else y)


@pytest.mark.parametrize(
    "column, n, hook",
    [
        ("modes", 1, _in_mode(training=True)),
        ("modes", 1, lambda module, _, y: module.state_dict()["0.norm.running_mean"].add_(1) * 0 + y),
        ("gradients", 1, lambda _module, _, y: Late.apply(y)),
        ("second call", 1, _in_its_second_call()),
        ("batch 1", 1, lambda _module, _, y: y + 1 if len(y) == 1 else y),
        ("other sizes", 1, lambda _module, _, y: y[:4]),
        ("iterations", 4, lambda _module, _, y: y),
        ("bfloat16", 4, lambda _module, _, y: y.float()),
    ],
)
def test_each_comparison_sees_what_it_is_for(monkeypatch, column, n, hook):
    monkeypatch.setattr(check, "convert", _bent(hook, n=n))
    if column == "iterations":  # which do not call the network itself
        monkeypatch.setattr(PararealModule, "iterate", lambda net, inputs, k: net(inputs))
    row = row_of(*(Unit() for _ in range(3)), others={"7 rows": torch.randn(7, 6)})
    assert row["columns"][column] == "wrong", row
    assert row["failed"] == "wrong"


def test_what_raises_is_a_crash_and_a_typed_error_a_refusal(monkeypatch):
    def raises(error):
        def hook(_module, _, y):
            if len(y) == 1:
                raise error
            return y

        return hook

    for error, verdict in ((KeyError("gone"), "crash"), (CaptureError("not one row"), "refused")):
        with monkeypatch.context() as patched:
            patched.setattr(check, "convert", _bent(raises(error), n=1))
            row = row_of(*(Unit() for _ in range(5)))
        assert row["columns"]["batch 1"] == verdict
        assert row.get("failed") == (verdict if verdict == "crash" else None)


class Past(nn.Module):
    """Reads one position to the left."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.linear(torch.nn.functional.pad(x, (0, 0, 1, 0))[:, : x.shape[1]])


def test_what_leaks_from_the_future_is_wrong(monkeypatch):
    def reads_all(_module, _, y):
        return y + y.mean(1, keepdim=True)

    inputs = torch.randn(2, 8, 6)
    assert row_of(*(Past() for _ in range(3)), inputs=inputs)["columns"]["causality"] == "right"
    monkeypatch.setattr(check, "convert", _bent(reads_all, n=4))
    row = row_of(*(Past() for _ in range(3)), inputs=inputs)
    assert row["columns"]["causality"] == "wrong"
    assert "axis 1 of the input from 4 on" in row["faults"]["causality"]


def test_a_missing_gradient_is_wrong(monkeypatch):
    def frozen(model, n, **options):
        net = convert(model, n, **options)
        for parameter in list(net.parameters())[:1] if n > 1 else ():
            parameter.requires_grad_(requires_grad=False)
        return net

    convert = check.convert
    monkeypatch.setattr(check, "convert", frozen)
    row = row_of(*(Unit() for _ in range(4)))
    assert row["columns"]["trained"] == "wrong"
    assert "1 of" in row["error"]


def test_a_child_process_that_fails_becomes_a_row():
    def fails():
        raise KeyError("gone")

    assert harness.isolated(fails, seconds=60, gibibytes=8)["error"] == "KeyError: 'gone'"
    assert harness.isolated(lambda: sys.exit(3), seconds=60, gibibytes=8)["failed"] == "killed"
    assert harness.isolated(lambda: time.sleep(60), seconds=0.2, gibibytes=8)["failed"] == "timeout"


def test_a_stopped_run_goes_on(tmp_path):
    measured = []

    def once(name):
        return {"value": len(name)}

    for names in (["a"], ["a", "bb"]):
        results = harness.Results(tmp_path / "results.json")
        harness.run_cases(names, once, results, seconds=60, gibibytes=8, show=lambda row: measured.append(row["value"]))
    assert measured == [1, 2]
    saved = json.loads((tmp_path / "results.json").read_text())
    assert list(saved["rows"]) == ["a", "bb"]
    assert saved["about"]["machine"]["torch"] == torch.__version__.split("+")[0]


def test_cases_are_named_once_and_counted():
    names = cases.names()
    assert len(set(names)) == len(names)
    counts = {library: sum(name.startswith(f"{library}:") for name in names) for library in ("hf", "public", "timm")}
    assert counts == {"hf": len(HUGGING_FACE), "public": len(PUBLIC_STYLE), "timm": len(cases.TIMM)}
    assert counts["hf"] >= 60
    assert counts["public"] >= 25


@pytest.mark.parametrize("name", PUBLIC_STYLE)
def test_networks_in_public_style_take_their_inputs(name):
    case = cases.build(f"public:{name}")
    for inputs in (case.inputs, *case.others.values()):
        assert list(floating(call(case.model, inputs)))


def test_coverage_command(tmp_path):
    command = [sys.executable, "-m", "benchmarks.coverage", "--only", "hf:GPTNeoXModel", "--out", tmp_path, "--json"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    row = json.loads(run.stdout)["hf:GPTNeoXModel"]
    assert run.returncode == (1 if "failed" in row else 0), run.stderr
    assert (row["n"], row["kinds"], row["exact"]) == (4, "GPTNeoXLayer × 4", True)
    assert row["columns"].keys() == set(tables.COLUMNS)
    assert row["commit"]
    assert "| GPTNeoXModel |" in (tmp_path / "table.md").read_text()


def test_table_counts_what_was_reached():
    refused = {"failed": "refused", "stage": "convert", "error": "PlanError: too few", "seconds": 1}
    right = {"seconds": 1, "meta": True, "columns": {"modes": "right"}, "commit": "abc"}
    partly = {
        "seconds": 1,
        "columns": {"modes": "right", "other sizes": "refused"},
        "faults": {"other sizes": "CaptureError: depends on train()/eval(), as auxiliary heads make it"},
    }
    rows = {"timm:a": right, "timm:b": refused, "timm:c": partly}
    assert "| timm | 3 | 2 (66.7%) | 1 | 1 | 1 | 0 | 0 | 1 |" in tables.summary(rows)
    assert "| other sizes | 0 | 1 | 0 | 0 | 1 |" in tables.by_column(rows)
    assert tables.unjustified(rows) == ["timm:b"]


def test_a_case_of_a_command_is_its_last_line(tmp_path):
    (tmp_path / "row.json").write_text('{"cpu": 1.5}')
    assert harness.row_of_command("json.tool", "--compact", str(tmp_path / "row.json")) == {"cpu": 1.5}
    with pytest.raises(SystemExit, match=r"json\.tool .*none\.json: "):
        harness.row_of_command("json.tool", str(tmp_path / "none.json"))


def test_exponent():
    assert harness.exponent([1, 10, 100], [3, 30, 300]) == pytest.approx(1)
    assert harness.exponent([1, 10, 100], [3, 300, 30000]) == pytest.approx(2)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
def test_a_conversion_is_measured_by_stage():
    row = compile_measure.measure("chain-12", 3)
    assert (row["blocks"], row["n"]) == (12, 3)
    assert set(row["stages"]) == {*compile_measure.STAGES, "rest"}
    assert sum(row["stages"].values()) == pytest.approx(row["cpu"])
    assert min(row["stages"][stage] for stage in compile_measure.STAGES) > 0


def test_compile_table_and_plot(tmp_path):
    stages = dict.fromkeys([*compile_measure.STAGES, "rest"], 0.1)
    row = {"cpu": 1.0, "wall": 1.0, "peak_mib": 5.0, "model_mib": 1.0, "stages": stages, "n": 12, "blocks": 100}
    results = harness.Results(tmp_path / "results.json")
    results.rows = {"resnet1001": row, "chain-100": row, "chain-1000": {**row, "cpu": 10.0}}
    assert compiling.slopes_of(results.rows)["cpu"] == pytest.approx(1)
    assert "| chain-1000 | 1000 |" in compiling.markdown(results)
    compiling.draw([100, 1000], [row, results.rows["chain-1000"]], tmp_path / "growth.svg")
    assert "<svg" in (tmp_path / "growth.svg").read_text()


def test_ratios_are_against_the_fastest_of_ours_and_of_the_pipelines(tmp_path):
    def taking(seconds):
        return {"step": {"median": seconds, "range": [seconds, seconds], "runs": 3}}

    row = {
        "one thread": taking(0.3),
        "GPipe 1": taking(0.4),
        "1F1B 2": taking(0.2),
        "parareal linear": taking(0.1),
        "parareal paper": taking(0.15),
    }
    assert process_tables.ratios(row) == pytest.approx({"one thread": 3, "pipelining": 2})
    assert process_tables.ratios({"one thread": taking(1)}) == {}
    results = harness.Results(tmp_path / "results.json")
    results.rows = {"resnet1001, batch 1": row}
    shown = process_tables.markdown(results)
    assert "| resnet1001, batch 1 | 3.00 | – | – | 2.00 |" in shown
    assert "| resnet1001, batch 1 | one thread | 1.9 | 3.00 |" in shown
    process_tables.draw(results.rows, tmp_path / "speedup.svg")
    assert "<svg" in (tmp_path / "speedup.svg").read_text()


def test_what_autograd_keeps_is_counted_once():
    layer, x = nn.Linear(4, 4, bias=False), torch.randn(8, 4, requires_grad=True)
    with memory.Kept(layer) as kept:
        torch.tanh(layer(x)) + layer(x)  # keeps x once, and the tanh; the weight is the layer's own
    assert kept.bytes == 2 * 8 * 4 * 4


def test_memory_of_each_rank(tmp_path):
    words = ["--network", "resnet20", "--ranks", "1", "2", "--coarse", "linear", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.memory", *words]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    one, two = rows["resnet20, linear, 1 ranks"], rows["resnet20, linear, 2 ranks"]
    assert sum(two["parameters"]) > one["parameters"][0] > max(two["parameters"])
    assert max(two["kept_mib"]) < one["kept_mib"][0]
    assert "| linear | 2 |" in memory_command.markdown(harness.Results(tmp_path / "results.json"))
    assert "<svg" in (tmp_path / "memory.svg").read_text()


def test_rows_of_coverage_name_no_folder_of_the_machine() -> None:
    text = "cannot capture (Net) at /opt/python/lib/python3.11/site-packages/transformers/x.py:3 `y`"
    assert check.without_folders(text) == "cannot capture (Net) at transformers/x.py:3 `y`"
    hook = f"a hook ({Path(__file__).resolve()}:9)"
    assert check.without_folders(hook) == "a hook (tests/benchmarks/test_benchmarks.py:9)"
