"""The command: ``python -m benchmarks.pretrained.two_ranks --data out``: what pairs of a network take on two ranks.

Two processes of one thread each, joined by gloo: n = 2 windows, a segment a rank, beside the original in one process on
one thread, in turn, round after round; a training step and a call, at two batch sizes. Times do not depend on what the
weights are: nothing is calibrated, and corrections are as a plan has them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.harness import Results, table
from benchmarks.ranks import Case, Measurement, on_ranks
from pararealize import pararealize

from . import minilm
from .fashion import NETWORKS, SIDE

__all__ = ["main", "markdown", "measure"]

FOLDER = Path(__file__).parent
BATCHES = (1, 16)
TOKENS = 32
WARM = 2
CASES: dict[str, dict[str, Any]] = {  # as the table of errors has them
    "minilm": {"windows": 3, "coarse": "low-rank:96"},
    "fashion-mnist": {"windows": 17, "coarse": "folded"},
    "fashion-vit": {"windows": 6, "coarse": "dense"},
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrained.two_ranks", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--data", type=Path, default=Path("out"), help="the folder with MiniLM's weights")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of two_ranks.json and two_ranks.md")
    options = parser.parse_args(arguments)
    results = Results(options.out / "two_ranks.json")
    for network in options.networks:
        if network == "minilm" and minilm.weights_folder(options.data) is None:
            print(f"LEFT OUT: minilm: no weights below {options.data}", file=sys.stderr)
            continue
        for batch in BATCHES:
            case = {"network": network, "batch": batch, "rounds": options.rounds, "data": str(options.data)}
            row: dict[str, Any] = {}
            times: dict[str, list[float]] = {}
            for way, quantity, value in on_ranks(measure, 2, case, _line, bind=True):
                if quantity == "speedup":
                    row["speedup"] = round(value, 4)
                else:
                    times.setdefault(f"{way}, {quantity}", []).append(value)
            row |= {name: round(median(values), 6) for name, values in times.items()}
            results.add(f"{network}, batch {batch}", row | {"rounds": options.rounds})
    (options.out / "two_ranks.md").write_text(markdown(results))
    print(json.dumps(results.rows, indent=1))
    return 0


def measure(case: Case) -> Iterator[Measurement]:
    """Times of the original, on the first rank, and of the network over both, in turn."""
    model, inputs = _model(case["network"], case["batch"], Path(case["data"]))
    options = CASES[case["network"]]
    net = pararealize(model.eval(), 2, source="stem", example_inputs=inputs, **options).eval()
    stage = net.distribute(init_device_mesh("cpu", (2,), mesh_dim_names=("parareal",)))
    yield "ranks", "speedup", net.plan.speedup

    def step() -> None:
        model.zero_grad()
        _loss(model(**inputs)).backward()

    def ranks_step() -> None:
        stage.zero_grad()
        stage.step(**inputs, loss_fn=_loss)

    ways: dict[tuple[str, str], Callable[[], Any]] = {
        ("original", "step"): step,
        ("ranks", "step"): ranks_step,
        ("original", "call"): lambda: _called(model, inputs),
        ("ranks", "call"): lambda: _called(stage, inputs),
    }
    for i in range(-WARM, case["rounds"]):
        for (way, quantity), run in ways.items():
            seconds = _seconds(run if way == "ranks" or distributed.get_rank() == 0 else lambda: None)
            if i >= 0:
                yield way, quantity, seconds


def _model(network: str, batch: int, data: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    if network == "minilm":
        folder = minilm.weights_folder(data)
        assert folder is not None  # the command has looked
        ids = torch.randint(1000, 20000, (batch, TOKENS))
        return minilm.encoder(folder), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model = NETWORKS[network].make()
    return model, {"x": torch.randn(batch, 1, SIDE, SIDE)}


def _loss(output: Tensor) -> Tensor:
    return output.square().mean()


@torch.no_grad()
def _called(net: nn.Module, inputs: dict[str, Tensor]) -> Any:
    return net(**inputs)


def _seconds(run: Callable[[], Any]) -> float:
    """Until the last rank is done."""
    distributed.barrier()
    start = time.perf_counter()
    run()
    distributed.barrier()
    return time.perf_counter() - start


def _line(measurement: Measurement) -> str:
    return f"{measurement[0]}, {measurement[1]}: {measurement[2] * 1e3:.1f} ms"


def markdown(results: Results) -> str:
    """A row a case: median milliseconds, and how many times as fast two ranks are, beside what the plan predicts."""
    head = ("", "a step: original, ms", "two ranks, ms", "as fast", "a call: original, ms", "two ranks, ms", "as fast")
    rows = []
    for name, row in results.rows.items():
        cells = [name]
        for quantity in ("step", "call"):
            one, two = (row[f"{way}, {quantity}"] * 1e3 for way in ("original", "ranks"))
            cells += [f"{one:.1f}", f"{two:.1f}", f"{one / two:.2f}×"]
        rows.append((*cells, f"{row['speedup']:.2f}×"))
    return f"# Pretrained networks in pairs, on two ranks\n\n{table((*head, 'predicted'), rows)}\n"


if __name__ == "__main__":
    sys.exit(main())
