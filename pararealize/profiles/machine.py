"""A device at hand -> DeviceProfile: what it computes by element type, moves in memory and spends on launches.

Each figure is the best of several runs: a machine that does something else besides is slower for a while, never faster.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import torch

from pararealize.argument_types import typed_arguments
from pararealize.errors import DeviceError, ProfileError
from pararealize.random_state import preserve_torch_state

from .device import DeviceProfile, Link, Peaks

__all__ = ["measure_device"]

SECONDS = 0.25  # that each figure is measured for
CHAIN = 200  # small operations, one after the other
SIDE = {"cpu": 768, "cuda": 8192}  # of the matrices that are multiplied
VALUES = {"cpu": 2**24, "cuda": 2**28}  # float32 that are copied: more than caches hold


@typed_arguments(ProfileError, "device")
def measure_device(
    device: str | torch.device | None = None,
    *,
    name: str | None = None,
    links: tuple[Link, ...] = (),
    report: Callable[[str], None] | None = None,
) -> DeviceProfile:
    """Measure a device of this machine; on the CPU with as many threads as torch has here.

    Products of square matrices give the operations a second of each element type, a copy the bytes a second, a chain of
    small operations, forward and backward, what each costs besides, and a loss what a step does. It takes a few
    seconds.

    Args:
        device: which; the first GPU, or the CPU where there is none.
        name: of the profile; the device's own when left out.
        links: between such devices, as :func:`measure_link` gives them.
        report: is told what is measured next.

    Returns:
        The profile; its memory is all of the device's.

    Raises:
        DeviceError: there is no such device, or it is neither a GPU nor the CPU.
    """
    place = _place(device)
    say = report or _ignore
    with preserve_torch_state([place]), torch.inference_mode(False), torch.enable_grad():
        peaks: dict[str, float | None] = {}
        for kind in ("float32", "float64", "bfloat16", "float16"):
            say(f"measuring products in {kind}")
            peaks[kind] = _products(place, getattr(torch, kind))
        if place.type == "cuda":
            say("measuring products in tf32")
            peaks["tf32"] = _products(place, torch.float32, tf32=True)
        say("measuring memory")
        bandwidth = _copies(place)
        say("measuring launches")
        launch = _launches(place)
        captured = _captured_launches(place) if place.type == "cuda" else launch
        step = _best(_loss(place), place)
    return DeviceProfile(
        name=name or _name(place),
        source=f"measured with torch {torch.__version__}, {_threads(place)}",
        peaks=Peaks(**{kind: value for kind, value in peaks.items() if value}),
        bandwidth=bandwidth,
        memory=float(_memory(place)),
        launch=launch,
        launch_captured=captured,
        step=step,
        links=links,
    )


def _ignore(text: str) -> None:
    """Say nothing."""


def _place(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DeviceError(
            f"device {device!r} is not there: {reason}; pass 'cpu', or 'cuda:0' on a machine with a GPU"
        ) from error
    if place.type not in SIDE:
        raise DeviceError(
            f"device {device!r} is neither a GPU of CUDA nor the CPU, and is not measured; pass one of these"
        )
    return place


def _best(work: Callable[[], object], place: torch.device) -> float:
    """The least seconds of a run."""
    work()
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        start = time.perf_counter()
        work()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        best = min(best, time.perf_counter() - start)
    return max(best, 1e-9)


def _products(place: torch.device, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
    """Operations a second; nothing of a type that the device multiplies in no reasonable time, or not at all."""
    side = SIDE[place.type]
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        if place.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = tf32
        small = torch.randn(side // 8, side // 8, device=place).to(dtype)
        if _best(lambda: small @ small, place) * 8**3 > 20 * SECONDS:
            return 2.0 * (side // 8) ** 3 / _best(lambda: small @ small, place)
        a = torch.randn(side, side, device=place).to(dtype)
        out = torch.empty_like(a)
        return 2.0 * side**3 / _best(lambda: torch.mm(a, a, out=out), place)
    except RuntimeError:  # torch has no such product here
        return None
    finally:
        if place.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = before


def _copies(place: torch.device) -> float:
    a = torch.ones(VALUES[place.type], device=place)
    b = torch.empty_like(a)
    return 2.0 * a.numel() * a.element_size() / _best(lambda: b.copy_(a), place)


def _launches(place: torch.device) -> float:
    x = torch.ones(8, device=place, requires_grad=True)

    def step() -> None:
        value = x
        for _ in range(CHAIN):
            value = value.sin()
        torch.autograd.grad(value.sum(), x)

    return _best(step, place) / (4 * CHAIN)  # backward, the gradient of a sine is a cosine, a conjugate and a product


def _loss(place: torch.device) -> Callable[[], object]:
    """What a training step has besides a network's operations: a loss, from which the backward pass begins."""
    output, target = (
        torch.zeros(8, 10, device=place, requires_grad=True),
        torch.zeros(8, dtype=torch.long, device=place),
    )

    def step() -> None:
        output.grad = None
        torch.nn.functional.cross_entropy(output, target).backward()

    return step


def _captured_launches(place: torch.device) -> float:
    x = torch.ones(8, device=place)
    for _ in range(3):
        x.sin()
    torch.cuda.synchronize(place)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = x
        for _ in range(CHAIN):
            value = value.sin()
    return _best(graph.replay, place) / CHAIN


def _name(place: torch.device) -> str:
    return torch.cuda.get_device_name(place) if place.type == "cuda" else platform.processor() or platform.machine()


def _threads(place: torch.device) -> str:
    return f"{torch.get_num_threads()} threads" if place.type == "cpu" else "one device"


def _memory(place: torch.device) -> int:
    if place.type == "cuda":
        return int(torch.cuda.get_device_properties(place).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
