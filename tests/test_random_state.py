"""Random states: equal streams for equal keys only; what a context changes is put back; states as values go on."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pararealize import random_state
from pararealize.random_state import (
    continued_state,
    derived_seed,
    generator,
    host_state,
    host_state_as_json,
    others_draw,
    preserve_host_state,
    preserve_own_host_state,
    preserve_state,
    preserve_torch_state,
    replay_torch_state,
    seed_all,
    seeded_state,
    seeded_weights,
    set_host_state,
    set_torch_state,
    started_cuda_devices,
    torch_state,
)

CUDA_0, CUDA_2 = torch.device("cuda:0"), torch.device("cuda:2")


def draw():
    """One number of each kind."""
    return random.random(), np.random.rand(), torch.rand(1).item()


@pytest.fixture
def gpus(monkeypatch):
    """Three CUDA generators, started, in a machine that has none: by index, and which indices were asked for."""
    generators = [torch.Generator().manual_seed(100 + i) for i in range(3)]
    asked: list[int] = []

    def index_of(device):
        asked.append(device if isinstance(device, int) else torch.device(device).index)
        return asked[-1]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(generators))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: generators[index_of(device)].get_state())
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: generators[index_of(device)].set_state(state)
    )
    monkeypatch.setattr(torch.cuda, "default_generators", tuple(generators))
    return generators, asked


def test_streams_of_different_keys_differ():
    keys = [*itertools.product(range(-2, 5), range(3), range(4)), (12, 3), (1, 23), ("glyphs", 1)]
    drawn = torch.stack([torch.rand(4, generator=generator(*key)) for key in keys])
    assert len(drawn.unique(dim=0)) == len(keys)
    assert torch.equal(drawn[0], torch.rand(4, generator=generator(*keys[0])))


def test_what_a_seed_once_gave_it_gives_for_ever():
    """Published runs name a seed; these numbers are those of the first release."""
    assert derived_seed(0, "begin 0") == 7633367920238288
    assert generator(3, "glyphs").initial_seed() == 11475140233621696508
    with seeded_weights(0, "C2"):
        weights = torch.rand(9)
    assert torch.equal(weights, torch.rand(9, generator=torch.Generator().manual_seed(5372784214480327273)))


@pytest.mark.parametrize(
    "context, changes",
    [
        (preserve_torch_state, (True, True, False)),
        (preserve_host_state, (False, False, True)),
        (preserve_state, (False, False, False)),
        (lambda: seeded_state(4), (True, True, False)),
        (lambda: seeded_weights(4, "F1"), (True, True, False)),
        (lambda: replay_torch_state(torch_state()), (True, True, False)),
        (lambda: continued_state([], 4), (False, False, False)),
    ],
    ids=["torch", "host", "all", "seed", "weights", "replay", "continued"],
)
@pytest.mark.parametrize("fails", [False, True])
def test_states_are_as_before_on_leaving(context, changes, fails):
    seed_all(11)
    expected = draw()
    seed_all(11)
    with contextlib.suppress(ZeroDivisionError), context():
        draw()
        if fails:
            raise ZeroDivisionError
    assert tuple(a != b for a, b in zip(draw(), expected, strict=True)) == changes


def test_only_the_devices_that_are_named_are_touched(gpus):
    generators, asked = gpus
    states = [gpu.get_state() for gpu in generators]
    with preserve_torch_state([torch.device("cpu"), CUDA_2, torch.device("meta"), CUDA_0, CUDA_2]):
        assert asked == [0, 2]
        for gpu in generators:
            torch.rand(2, generator=gpu)
    assert [torch.equal(gpu.get_state(), state) for gpu, state in zip(generators, states, strict=True)] == [
        True,
        False,
        True,
    ]
    asked.clear()
    with preserve_state():
        pass
    assert asked == []


def test_a_seed_is_set_where_it_is_asked_for_and_nowhere_else(gpus, monkeypatch):
    generators, _ = gpus
    monkeypatch.setattr(torch.cuda, "manual_seed_all", pytest.fail)  # as torch.manual_seed does, started or not
    with seeded_state(5, [CUDA_2]):
        assert [gpu.initial_seed() for gpu in generators] == [100, 101, 5]
        assert torch.default_generator.initial_seed() == 5
    with seeded_weights(5, "C1"):
        torch.rand(2)  # from generators of its own: other threads draw from these meanwhile
        assert [gpu.initial_seed() for gpu in generators] == [100, 101, 102]
    assert [gpu.initial_seed() for gpu in generators] == [100, 101, 102]


@pytest.mark.parametrize("home, built", [("cpu", "cpu"), ("meta", "meta")])
def test_weights_are_built_on_the_cpu_unless_they_are_to_have_no_values(home, built):
    with torch.device(home), seeded_weights(0, "C1"):
        assert torch.empty(1).device.type == built


def test_cuda_is_not_started(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "_lazy_init", pytest.fail)
    assert started_cuda_devices() == []
    with preserve_state(), seeded_state(1), seeded_weights(1, "C1"):
        assert list(torch_state()) == ["cpu"]


def test_started_devices_are_all_there_are(gpus):
    assert started_cuda_devices() == [torch.device("cuda", i) for i in range(3)]


def test_torch_goes_on_from_its_state(gpus):
    generators, _ = gpus
    state = torch_state([CUDA_2, torch.device("cpu"), CUDA_0])
    assert list(state) == ["cpu", "cuda:0", "cuda:2"]
    expected = torch.rand(3), torch.rand(3, generator=generators[0]), torch.rand(3, generator=generators[2])
    later = [gpu.get_state() for gpu in generators]
    with replay_torch_state(state):
        again = torch.rand(3), torch.rand(3, generator=generators[0]), torch.rand(3, generator=generators[2])
        torch.rand(1, generator=generators[2])
    assert all(map(torch.equal, expected, again))
    assert all(map(torch.equal, later, [gpu.get_state() for gpu in generators]))
    set_torch_state({**state, "cuda:7": state["cuda:0"]})  # of another machine, with more devices
    again = torch.rand(3), torch.rand(3, generator=generators[0]), torch.rand(3, generator=generators[2])
    assert all(map(torch.equal, expected, again))


def test_the_host_goes_on_from_its_state_in_json():
    random.gauss(0, 1), np.random.randn()  # each keeps the second of a pair
    state = json.loads(json.dumps(host_state_as_json()))
    expected = [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand()]
    set_host_state(state)
    assert [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand()] == expected


@pytest.mark.parametrize("number", [random.random, np.random.rand, lambda: np.random.randn(1), torch.initial_seed])
def test_whether_the_host_drew_is_seen(number):
    before = host_state()
    number()
    assert (host_state() != before) is (number is not torch.initial_seed)


def test_a_state_goes_on_where_it_ended():
    seed_all(11)
    expected = [draw() for _ in range(3)]
    states = []
    for numbers in expected:
        draw()
        with continued_state(states, 11):
            assert draw() == numbers


def test_all_are_seeded_from_one_number():
    seed_all(2**40 + 1)
    first = draw()
    seed_all(2**40 + 1)
    assert draw() == first
    assert len({*first, *draw()}) == 6


def test_nothing_else_in_the_library_handles_random_states():
    """Whatever saves, restores, forks or seeds them does it in one file."""
    root = Path(random_state.__file__).parent
    words = ("rng_state", "fork_rng", "manual_seed_all", "random.getstate", "random.setstate", "np.random", "seed_all(")
    users = {
        file.relative_to(root).as_posix(): word
        for file in root.rglob("*.py")
        for word in words
        if word in file.read_text(encoding="utf-8")
    }
    # those that set none: an example, an argument of torch's checkpoint, and what tells whether a model's code draws
    others = {"random_source.py", "tracing/regions.py", "tracing/python_state.py", "network/local/graphed_call.py"}
    assert users.keys() - others == {"random_state.py", "train/loop.py"}, users
    assert users["train/loop.py"] == "seed_all("


# ------------------------------------------------------------------------------------------------------ other threads


@contextlib.contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Another thread, which does something every few milliseconds."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.002):
            work()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_own_numbers_are_put_back_beside_a_thread_that_draws_none():
    with beside(lambda: None):
        assert not others_draw()
        before = host_state()
        with preserve_own_host_state():
            draw()
        assert host_state() == before
    with preserve_own_host_state():
        draw()
    assert host_state() == before


@pytest.mark.parametrize("source", [random.random, np.random.rand])
def test_another_thread_does_not_draw_its_numbers_twice(source):
    seen: list[float] = []
    with beside(lambda: seen.append(source())):
        for _ in range(5):
            with preserve_own_host_state():
                source()
        assert others_draw()
    assert len(set(seen)) == len(seen) > 5
