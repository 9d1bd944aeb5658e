"""The command: ``python -m benchmarks.memory``.

For each number of ranks, that many processes train a converted ResNet for two steps; each reports its parameters,
what autograd keeps for the backward pass, and how far its resident memory rises during the second step.
"""

from __future__ import annotations

import argparse
import gc
import json
import socket
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.harness import Results, table
from pararealize import models, pararealize

FOLDER = Path(__file__).parent
NETWORK = "resnet1001"
COARSE = ("linear", "depthwise", "paper")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--network", default=NETWORK, help="one of pararealize's own, such as resnet110")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--coarse", nargs="+", default=list(COARSE))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json, table.md and memory.svg")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    given = parser.parse_args(arguments)

    results = Results(given.out / "results.json")
    for coarse in given.coarse:
        for ranks in given.ranks:
            row = _measured(given.network, ranks, coarse, given.batch)
            results.add(f"{given.network}, {coarse}, {ranks} ranks", row)
            worst = max(row["total_mib"])
            print(f"{given.network}, {coarse}, {ranks} ranks: {worst:.0f} MiB on the fullest", file=sys.stderr)
    (given.out / "table.md").write_text(markdown(results))
    draw(list(results.rows.values()), given.out / "memory.svg")
    print(json.dumps(results.rows, indent=1) if given.json else markdown(results))
    return 0


def _measured(network: str, ranks: int, coarse: str, batch: int) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    report: Any = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.start_processes(
        _rank, (ranks, port, network, coarse, batch, report), nprocs=ranks, start_method="spawn"
    )
    found = sorted((report.get() for _ in range(ranks)), key=lambda row: row["rank"])
    columns = {key: [row[key] for row in found] for key in found[0] if key != "rank"}
    return {"network": network, "ranks": ranks, "coarse": coarse, "batch": batch, **columns}


def _rank(rank: int, ranks: int, port: int, network: str, coarse: str, batch: int, report: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks, timeout=timedelta(minutes=5)
    )
    torch.manual_seed(0)
    x, target = torch.randn(batch, 3, 32, 32), torch.randint(100, (batch,))
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("parareal",))
    model = getattr(models, network)(num_classes=100)
    stage = pararealize(model, ranks, example_inputs=x, coarse=coarse).distribute(mesh)
    del model
    optimiser = torch.optim.SGD(stage.parameters(), lr=1e-3, momentum=0.9)
    kept = 0
    for counted in (False, True):
        gc.collect()
        optimiser.zero_grad(set_to_none=True)
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        with Kept(stage) if counted else torch.enable_grad() as saved:
            stage.step(x, target=target, loss_fn=F.cross_entropy)
        optimiser.step()
        kept = saved.bytes if counted else 0
    weights = sum(p.numel() * p.element_size() for p in stage.parameters())
    state = 3 * weights + sum(b.numel() * b.element_size() for b in stage.buffers())
    report.put(
        {
            "rank": rank,
            "parameters": sum(p.numel() for p in stage.parameters()),
            "state_mib": state / 2**20,
            "kept_mib": kept / 2**20,
            "total_mib": (state + kept) / 2**20,
            "risen_mib": (_resident("VmHWM") - before) / 1024,
        }
    )
    distributed.destroy_process_group()


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd keeps for the backward pass, each memory once, parameters left out."""

    def __init__(self, module: nn.Module) -> None:
        self.bytes = 0
        self.seen = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
        self.alive: list[torch.Tensor] = []  # so that no address is used twice
        super().__init__(self.pack, lambda tensor: tensor)

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.alive.append(tensor.detach())
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> Kept:
        super().__enter__()
        return self


def _resident(field: str) -> float:
    """KiB that the process holds now (VmRSS), or at most since the last reset (VmHWM); Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def markdown(results: Results) -> str:
    return "\n\n".join(_sections(list(results.rows.values()))) + "\n"


def _sections(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "# Memory per rank"
    yield "Written by `python -m benchmarks.memory`; see [README.md](README.md). MiB of the fullest rank."
    head = (
        "coarse",
        "ranks",
        "parameters",
        "weights, gradients, momentum",
        "kept for backward",
        "both",
        "of one rank",
        "risen",
    )
    lines = []
    for row in rows:
        one = next((max(r["total_mib"]) for r in rows if r["coarse"] == row["coarse"] and r["ranks"] == 1), None)
        most = max(row["total_mib"])
        share = f"{most / one:.2f}" if one else "–"
        columns = (f"{max(row[key]):.0f}" for key in ("state_mib", "kept_mib", "total_mib"))
        lines.append(
            (
                row["coarse"],
                row["ranks"],
                f"{max(row['parameters']) / 1e6:.2f}M",
                *columns,
                share,
                f"{max(row['risen_mib']):.0f}",
            )
        )
    yield table(head, lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The fullest rank's memory against the number of ranks, one line a coarse kind, with 1/N beside them."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "pararealize"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for kind, marker in zip(dict.fromkeys(row["coarse"] for row in rows), "osv^D", strict=False):
        ours = sorted((row["ranks"], max(row["total_mib"])) for row in rows if row["coarse"] == kind)
        axes.plot(*zip(*ours, strict=True), f"{marker}-", label=f'coarse="{kind}"')
    one = max(max(row["total_mib"]) for row in rows if row["ranks"] == 1)
    ranks = sorted({row["ranks"] for row in rows})
    axes.plot(ranks, [one / n for n in ranks], "--", color="grey", label="1/N")
    axes.set(xscale="log", yscale="log", xlabel="ranks, one segment each", ylabel="MiB on the fullest rank")
    axes.set_xticks(ranks, [str(n) for n in ranks])
    axes.minorticks_off()
    axes.set_title("weights, gradients, momentum and what backward needs")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
