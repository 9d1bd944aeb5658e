"""A network, a batch size, n and windows -> a row for each way to run it: agreement with eager first, then times."""

from __future__ import annotations

import contextlib
import copy
import gc
import time
import traceback
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy

from pararealize import PararealModule, Stage, pararealize
from pararealize.network.local import capture_inference, capture_stage, capture_step, run_local, streams

from .networks import INFERENCE, make

__all__ = ["ORIGINAL", "PARAREAL", "chains", "measure"]

ORIGINAL = ("original eager", "original compiled by block", "original in one graph")
PARAREAL = (
    "streams",
    "in one graph",
    "in one graph, no branches",
    "in one graph, stacked",
    "as a rank, parts in graphs",
)
CHECKED = 2  # steps in which numbers are compared

Step = Callable[[Tensor, Tensor], Any]


def measure(
    name: str, batch: int, n: int | None, windows: int, *, ways: tuple[str, ...], small: bool, steps: int
) -> Iterator[dict[str, Any]]:
    """One row a way, as soon as there is one; one way is alive at a time.

    Args:
        name: of the network.
        batch: samples.
        n: segments; ``None`` for the original.
        windows: of the converted network.
        ways: those to run.
        small: a small network of the same kind on the CPU, for the double.
        steps: a round; there are three.
    """
    device = "cpu" if small else "cuda"
    model, x, labels = make(name, batch, small=small)
    model, x, labels = model.to(device), x.to(device), labels.to(device)
    begun = time.perf_counter()
    net: nn.Module = model
    if n is not None:
        cuts = "paper" if name.startswith("resnet") and windows == 1 else None
        net = pararealize(model, n, windows=windows, example_inputs=x, coarse="linear", cuts=cuts)
        if name in INFERENCE:
            net.eval()
    about = {"network": name, "batch": batch, "n": n, "windows": windows, "inference": name in INFERENCE}
    converted = round(time.perf_counter() - begun, 2)
    for way in ways:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        row = {**about, "way": way, "seconds to convert": converted}
        try:
            row |= _row(way, net, x, labels, steps, inference=name in INFERENCE)
        except Exception as error:  # noqa: BLE001 (it is the row: memory, a stack that there is not, what CUDA refuses)
            row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
            row["trace"] = traceback.format_exc()[-1500:]
        yield row


def _row(way: str, net: nn.Module, x: Tensor, labels: Tensor, steps: int, *, inference: bool) -> dict[str, Any]:
    run, twin = copy.deepcopy(net), copy.deepcopy(net)
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        if "as a rank" in way:
            run = stack.enter_context(_stage(run))
        step = _infer(way, run, x) if inference else _step(way, run, x, labels)
        torch.cuda.synchronize()
        row: dict[str, Any] = {"seconds to capture": round(time.perf_counter() - begun, 2)}
        row["differs by"] = _difference(step, run, twin, x, labels, inference=inference)
        del twin
        row |= _times(lambda: step(x, labels), steps)
        row["peak GiB"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    return row


@contextlib.contextmanager
def _stage(net: nn.Module) -> Iterator[Stage]:
    """The network as a process group of this process alone has it: all parts, and no messages."""
    assert isinstance(net, PararealModule)
    kind = next(net.parameters()).device.type
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        stage = net.distribute(init_device_mesh(kind, (1,)))
        yield stage
        stage.close()
    finally:
        dist.destroy_process_group()


def _step(way: str, net: nn.Module, x: Tensor, labels: Tensor) -> Step:
    """Forward, loss and backward; gradients are new after it."""
    if isinstance(net, Stage):
        parts = capture_stage(net)
        before = [(buffer, buffer.clone()) for buffer in net.buffers()]
        parts.step(x, target=labels, loss_fn=cross_entropy)  # the first one is eager, and captured behind its end
        for buffer, value in before:
            buffer.copy_(value)

        def replay(x: Tensor, labels: Tensor) -> Tensor:
            parts.zero_grad()
            return parts.step(x, target=labels, loss_fn=cross_entropy)

        return replay
    if "in one graph" in way:
        if "stacked" in way:
            assert isinstance(net, PararealModule)
            net = run_local(net, stack=True)
        graphed = capture_step(net, cross_entropy, x, labels, streams="no branches" not in way)
        return lambda x, labels: graphed(x, target=labels)
    run = _eager(way, net)

    def step(x: Tensor, labels: Tensor) -> Tensor:
        net.zero_grad()
        loss = cross_entropy(run(x), labels)
        loss.backward()
        return loss.detach()

    return step


def _infer(way: str, net: nn.Module, x: Tensor) -> Step:
    if isinstance(net, Stage):
        parts = capture_stage(net)
        parts(x)
        return lambda x, _: parts(x)
    if "in one graph" in way:
        if "stacked" in way:
            assert isinstance(net, PararealModule)
            net = run_local(net, stack=True)
        fast = capture_inference(net, x, streams="no branches" not in way)
        return lambda x, _: fast(x)
    run = _eager(way, net)

    @torch.no_grad()
    def step(x: Tensor, _: Tensor) -> Tensor:
        return run(x)

    return step


def _eager(way: str, net: nn.Module) -> nn.Module:
    if way == "streams":
        assert isinstance(net, PararealModule)
        return run_local(net)
    if way == "original compiled by block":  # a few shapes are compiled once each; the whole would take too long
        torch._dynamo.config.recompile_limit = 64
        kinds = ("PreActBottleneck", "PreActBasic", "Block")
        for module in net.modules():
            if type(module).__name__ in kinds:
                module.compile(backend="eager" if _is_on_cpu(net) else "inductor")
    return net


def _is_on_cpu(net: nn.Module) -> bool:
    return next(net.parameters()).device.type == "cpu"


def _difference(
    step: Step, run: nn.Module, twin: nn.Module, x: Tensor, labels: Tensor, *, inference: bool
) -> dict[str, float]:
    """The largest differences from the eager network: of what a step gives, and relative ones of gradients, buffers."""
    worst = {"result": 0.0, "gradient": 0.0, "buffer": 0.0}
    for i in range(CHECKED):
        inputs = torch.roll(x, i, 0) if not x.is_floating_point() else x + 0.1 * i
        ours = step(inputs, labels)
        if inference:
            with torch.no_grad():
                theirs = twin(inputs)
        else:
            twin.zero_grad()
            theirs = cross_entropy(twin(inputs), labels)
            theirs.backward()
        worst["result"] = max(worst["result"], float((ours - theirs.detach()).abs().max()))
        for name, p in run.named_parameters():
            q = twin.get_parameter(name)
            if (p.grad is None) != (q.grad is None):
                raise AssertionError(f"only one of the two has a gradient of {name}")
            if p.grad is not None and q.grad is not None:
                off = (p.grad - q.grad).norm() / (q.grad.norm() + 1e-12)
                worst["gradient"] = max(worst["gradient"], float(off))
    for name, a in run.named_buffers():
        b = twin.get_buffer(name)
        off = (a.double() - b.double()).norm() / (b.double().norm() + 1e-12)
        worst["buffer"] = max(worst["buffer"], float(off))
    return {key: float(f"{value:.2e}") for key, value in worst.items()}


def _times(run: Callable[[], Any], steps: int, rounds: int = 3) -> dict[str, float]:
    """Milliseconds of a step by the GPU's clock, and of the host to issue it; medians over the rounds."""
    run()
    torch.cuda.synchronize()
    device, host = [], []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        start = time.perf_counter()
        for _ in range(steps):
            run()
        host.append((time.perf_counter() - start) / steps * 1e3)
        end.record()
        torch.cuda.synchronize()
        device.append(begin.elapsed_time(end) / steps)
    return {
        "ms": round(median(device), 3),
        "least": round(min(device), 3),
        "most": round(max(device), 3),
        "host ms": round(median(host), 3),
    }


def chains(*, small: bool) -> Iterator[dict[str, Any]]:
    """Whether branches of one graph run at the same time: so many chains of as many small kernels in all."""
    device, total, alone = "cpu" if small else "cuda", 48 if small else 2400, 0.0
    for words in (4096, 65536):
        for n in (1, 3, 6, 12):
            values = [torch.zeros(words, device=device) for _ in range(n)]
            branches, main = [torch.cuda.Stream() for _ in range(n)], torch.cuda.Stream()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=main, capture_error_mode="thread_local"):
                for stream, value in zip(branches, values, strict=True):
                    streams.lend(value, stream)
                    stream.wait_stream(main)
                    with torch.cuda.stream(stream):
                        for _ in range(total // n):
                            value.add_(1.0)
                for stream in branches:
                    main.wait_stream(stream)
            row = _times(graph.replay, 2 if small else 20)
            alone = row["ms"] if n == 1 else alone
            yield {
                "section": "chains",
                "words": words,
                "chains": n,
                **row,
                "times one chain": round(alone / row["ms"], 2),
            }
