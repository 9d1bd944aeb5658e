"""Random states of torch, Python and NumPy: read, compared, put back, and replaced by what a seed gives for a while.

Whatever saves, restores, forks or seeds random numbers does it here. Four families:

    preserve_state(devices), preserve_torch_state, preserve_host_state    contexts that leave the states as they were
    seeded_state(seed, devices), seeded_weights(seed, name), seed_all     states that follow from a seed
    continued_state(states, seed)                                         states that go on where they ended
    torch_state(devices), replay_torch_state(states), host_state, ...     states as values

``devices`` are those whose generators are meant besides the CPU's, which always takes part. None of these functions
starts CUDA unless a CUDA device is among them.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from .random_source import RandomSource

__all__ = [
    "continued_state",
    "derived_seed",
    "generator",
    "host_state",
    "host_state_as_json",
    "others_draw",
    "preserve_host_state",
    "preserve_own_host_state",
    "preserve_state",
    "preserve_torch_state",
    "replay_torch_state",
    "seed_all",
    "seeded_state",
    "seeded_weights",
    "set_host_state",
    "set_torch_state",
    "started_cuda_devices",
    "torch_state",
]

_SHORTEST_LOOK, _LONGEST_LOOK = 0.02, 0.25  # seconds in which a thread that draws again and again is seen to do so

# Seeds and streams ---------------------------------------------------------------------------------------------------


def generator(*key: int | str) -> torch.Generator:
    """A generator on the CPU, the same for the same key, unrelated for others: ``generator(seed, epoch, batch)``.

    Seeds that count up would not do: sums of seed and epoch meet those of another run.

    Example:
        >>> first, second = (torch.rand(3, generator=generator(0, 7)) for _ in range(2))
        >>> bool((first == second).all())
        True
    """
    digest = hashlib.blake2b(" ".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def derived_seed(seed: int, purpose: str) -> int:
    """One seed for each purpose of a training run, from the run's own seed.

    Another digest than :func:`generator`'s, and another than :func:`seeded_weights`', since what was once drawn from a
    seed has to be drawn from it again: each of the three stays as it is.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:7], "big")


def seed_all(seed: int) -> None:
    """Seed torch on all devices (on those that are not started yet, when they start), Python and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


# Contexts ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def preserve_torch_state(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Put the states of the CPU's generator and of those of ``devices`` back on leaving, after an error too."""
    indices: dict[str, set[int]] = {"cuda": set()}
    for device in devices:
        if device.type != "cpu" and hasattr(getattr(torch, device.type, None), "get_rng_state"):
            indices.setdefault(device.type, set()).add(device.index or 0)
    with contextlib.ExitStack() as stack:
        for kind, numbers in indices.items():  # without a list of devices, fork_rng would start every one there is
            stack.enter_context(torch.random.fork_rng(devices=sorted(numbers), device_type=kind))
        yield


@contextlib.contextmanager
def preserve_host_state() -> Iterator[None]:
    """Put the states of Python's and NumPy's random numbers back on leaving."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def preserve_own_host_state() -> Iterator[None]:
    """The same, unless another thread draws from them meanwhile: it would draw its numbers a second time."""
    before, python, numpy = host_state(), random.getstate(), np.random.get_state()
    began = time.perf_counter()
    try:
        yield
    finally:
        if host_state() != before and not others_draw(min(time.perf_counter() - began, _LONGEST_LOOK)):
            random.setstate(python)
            np.random.set_state(numpy)


def others_draw(seconds: float = 0.0) -> bool:
    """Whether another thread draws from Python's or NumPy's generators: whether any does, while this one waits.

    Args:
        seconds: how long something ran in which another thread may have drawn; it is looked for as long, but for
            some hundredths of a second at least.
    """
    before, end = host_state(), time.perf_counter() + max(seconds, _SHORTEST_LOOK)
    while threading.active_count() > 1 and time.perf_counter() < end:
        time.sleep(_SHORTEST_LOOK / 4)
        if host_state() != before:
            return True
    return False


@contextlib.contextmanager
def preserve_state(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Put all random states back on leaving: torch's, on the CPU and on ``devices``, Python's and NumPy's."""
    with preserve_torch_state(devices), preserve_host_state():
        yield


@contextlib.contextmanager
def continued_state(states: list[Any], seed: int) -> Iterator[None]:
    """Draw on from where the last such context with this list ended, and leave the states outside as they were.

    The generators are torch's on the CPU, Python's and NumPy's. With an empty list they begin from the seed, which
    those of CUDA devices get, too, and keep.
    """
    with preserve_state():
        if states:
            torch.set_rng_state(states[0])
            random.setstate(states[1])
            np.random.set_state(states[2])
        else:
            seed_all(seed)
        yield
        states[:] = torch.get_rng_state(), random.getstate(), np.random.get_state()


@contextlib.contextmanager
def seeded_state(seed: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Draw from a seed, on the CPU and on the CUDA devices among ``devices``, and leave the states as they were."""
    devices = list(devices)
    with preserve_torch_state(devices):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also set devices not yet started
        for device in devices:
            if device.type == "cuda":
                torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        yield


@contextlib.contextmanager
def seeded_weights(seed: int, name: str) -> Iterator[None]:
    """Build modules whose weights follow from a seed and a name, on the CPU (or meta), whatever the default device is.

    What a constructor draws from torch comes from generators of this thread's own, on whatever device.
    """
    number = random.Random(f"{seed} {name}").getrandbits(63)  # noqa: S311  (not for secrets)
    device = torch.device("meta" if torch.get_default_device().type == "meta" else "cpu")
    with RandomSource(number), device:
        yield


# States as values ----------------------------------------------------------------------------------------------------


def started_cuda_devices() -> list[torch.device]:
    """Every CUDA device, where CUDA has been started; none where it has not, and so nothing can have been drawn."""
    count = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    return [torch.device("cuda", index) for index in range(count)]


def torch_state(devices: Iterable[torch.device] = ()) -> dict[str, torch.Tensor]:
    """The states of the CPU's generator and of those of the CUDA devices among ``devices``, by ``cpu``, ``cuda:0``."""
    indices = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    return {"cpu": torch.get_rng_state()} | {f"cuda:{index}": torch.cuda.get_rng_state(index) for index in indices}


def set_torch_state(states: Mapping[str, torch.Tensor]) -> None:
    """Go on from what :func:`torch_state` gave; states of CUDA devices that are not there are passed over."""
    for name, state in states.items():
        device = torch.device(name)
        if device.type == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, device)


@contextlib.contextmanager
def replay_torch_state(states: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Draw once more what was drawn after :func:`torch_state` gave ``states``, and leave the states as they were."""
    with preserve_torch_state(map(torch.device, states)):
        set_torch_state(states)
        yield


def host_state() -> tuple[Any, ...]:
    """The states of Python's and NumPy's random numbers, to compare: did something draw from them?"""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, np.asarray(keys).tobytes(), *rest


def host_state_as_json() -> dict[str, Any]:
    """The states of Python's and NumPy's random numbers as JSON holds them, for a checkpoint."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    numpy = [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)]
    return {"python": [version, list(numbers), gauss], "numpy": numpy}


def set_host_state(state: Mapping[str, Any]) -> None:
    """Go on from what :func:`host_state_as_json` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
