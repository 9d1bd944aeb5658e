"""Schedules against closed forms, against an independent longest path, and against the mathematics of a reduction."""

from __future__ import annotations

import dataclasses
import itertools
import math

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.errors import PlanError
from pararealize.plan.plan import Plan
from pararealize.plan.simulation import simulate
from pararealize.plan.times import Times
from tests.drawn_plans import in_windows, make_plan
from tests.plans import BYTES, plan_of

seconds = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda pair: (float(pair[0]), float(pair[1])))


@st.composite
def cases(draw, most: int = 6):
    """A plan and times that have nothing to do with it; whole numbers, so that sums are exact."""
    stages = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).filter(lambda s: sum(s) <= most + 2))
    plan = plan_of(
        stages, kind=draw(st.sampled_from(["paper", "linear"])), source=draw(st.sampled_from(["input", "stem"]))
    )
    n = plan.n
    return plan, Times(
        stem=draw(seconds),
        segments=tuple(draw(seconds) for _ in range(n)),
        adapters=tuple(draw(seconds) for _ in range(n - 1)),
        coarse=tuple(draw(seconds) for _ in range(n - 1)),
        head=draw(seconds),
    )


@given(cases(), st.integers(0, 9))
def test_closed_form(case, latency):
    """Forward and backward obey one recursion, with a message in front of every coarse block and behind the stem."""
    plan, times = case
    timeline = simulate(plan, times, latency=float(latency), reduce_linear=False)
    total = 0.0
    for way in (0, 1):
        wait = times.stem[way] + latency if plan.source == "stem" else 0.0
        own = [times.stem[way] + times.segments[0][way]]
        own += [wait + a[way] + s[way] for a, s in zip(times.adapters, times.segments[1:], strict=True)]
        time = own[0]
        for s, c in zip(own[1:], times.coarse, strict=True):
            time = max(s, time + latency) + c[way]
        total += time + times.head[way]
        if way == 0:
            assert simulate(plan, times, latency=float(latency), training=False, reduce_linear=False).step == total
    assert timeline.step == total
    assert timeline.serial == sum(times.serial)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data(), st.integers(0, 9))
def test_windows_follow_one_another(lengths, data, latency):
    """Free messages: the plan's own formula. Others: of n > 1 devices, each window waits for w_{m-1} besides."""
    plan = in_windows(make_plan(2), *lengths)

    def priced(row):
        cost = {"cost_forward": data.draw(seconds)[0], "cost_backward": data.draw(seconds)[1]}
        return dataclasses.replace(row, **cost)

    rows = {name: tuple(map(priced, getattr(plan, name))) for name in ("segments", "adapters", "coarse_blocks")}
    plan = dataclasses.replace(plan, **rows)
    timeline = simulate(plan, rate=1.0, batch=1)
    assert timeline.step == pytest.approx(plan.critical_path)
    assert timeline.serial == pytest.approx(plan.serial)
    assert plan == Plan.from_json(plan.to_json())
    later = simulate(plan, rate=1.0, batch=1, latency=float(latency))
    moves = sum(min(before.n, 2) - 1 for before in plan.windows)  # windows that end on another device than the first
    assert later.step >= timeline.step
    assert (later.step == timeline.step) == (latency == 0 or plan.n == 1 or timeline.step == 0) or moves == 0
    names = [str(action) for action in later.actions]
    assert len(set(names)) == len(names)
    for window in plan.windows:
        ranks = {a.j: a.rank for a in later.actions if a.kind == "fine" and a.m == window.segments[0].m}
        assert ranks == {j: window.offset + j - 1 for j in range(1, window.n + 1)}
    assert [a.rank for a in later.actions if a.kind == "head"] == [plan.n - 1] * 2


@settings(max_examples=20)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from(["linear", "paper"]),
    st.sampled_from([(0.0, None), (3.0, None), (0.5, 16.0)]),
    st.data(),
)
def test_what_a_plan_says_is_what_the_simulation_says(lengths, kind, link, data):
    """Of any costs, windows and messages: the step and the speed-up, as ranks do it, in seconds or operations."""
    plan = in_windows(make_plan(2), *lengths)
    units = {"kind": kind, "units": int(kind == "paper")}
    blocks = tuple(dataclasses.replace(row, **units) for row in plan.coarse_blocks)
    plan = dataclasses.replace(plan, coarse=kind, coarse_blocks=blocks)

    def priced(row):
        forward, backward = data.draw(seconds)
        return dataclasses.replace(row, cost_forward=forward, cost_backward=backward)

    rows = {name: tuple(map(priced, getattr(plan, name))) for name in ("segments", "adapters", "coarse_blocks")}
    rows |= {"latency": link[0], "bandwidth": link[1], "unit": data.draw(st.sampled_from(["seconds", "flops"]))}
    plan = dataclasses.replace(plan, **rows, rate=2.0)
    timeline = simulate(plan)
    assert (plan.step, plan.speedup) == (timeline.step, pytest.approx(timeline.speedup))
    ways = [simulate(plan, reduce_linear=way).step for way in (False, True)]
    assert plan.step == min(ways)
    assert Plan.from_json(plan.to_json()).speedup == plan.speedup
    free = simulate(plan, latency=0.0, bandwidth=math.inf)
    assert free.step <= plan.step
    if link == (0.0, None):
        assert plan.speedup >= plan.virtual_speedup * (1 - 1e-12)
    assert f"speed-up:   {plan.speedup:.2f}×" in str(plan)
    assert ("free messages" in str(plan)) == (link == (0.0, None))


def independent(plan: Plan, times: Times, message: float) -> float:
    """The longest path through equation (3) and its gradients, written out once more; one device a segment."""
    n, graph = plan.n, nx.DiGraph()

    def do(name: str, taken: float, *after: str) -> None:
        graph.add_node(name, taken=taken)
        graph.add_edges_from((other, name) for other in after)

    do("stem", times.stem[0])
    do("y1", times.segments[0][0], "stem")
    for j in range(2, n + 1):
        origin = []
        if plan.source == "stem":
            do(f"sent{j}", message, "stem")
            origin = [f"sent{j}"]
        do(f"x{j}", times.adapters[j - 2][0], *origin)
        do(f"y{j}", times.segments[j - 1][0], f"x{j}")
        do(f"m{j}", message, f"z{j - 1}" if j > 2 else "y1")
        do(f"z{j}", times.coarse[j - 2][0], f"y{j}", f"m{j}")
    do("head", times.head[0], f"z{n}" if n > 1 else "y1")
    do("dz", times.head[1], "head")
    ready = "dz"  # the gradient of z_j on segment j's device
    ends = []
    for j in range(n, 1, -1):
        do(f"dF{j}", times.coarse[j - 2][1], ready)
        do(f"dm{j}", message, f"dF{j}")
        do(f"dg{j}", times.segments[j - 1][1], f"dF{j}")
        do(f"dC{j}", times.adapters[j - 2][1], f"dg{j}")
        if plan.source == "stem":
            do(f"dsent{j}", message, f"dC{j}")
            ends.append(f"dsent{j}")
        ready = f"dm{j}"
    do("dg1", times.segments[0][1], ready)
    do("dstem", times.stem[1], "dg1", *ends)
    return longest(graph)


def longest(graph: nx.DiGraph) -> float:
    edges = nx.DiGraph()
    edges.add_node("begin")
    for name, data in graph.nodes(data=True):
        edges.add_edge((name, "in"), (name, "out"), weight=data["taken"])
        edges.add_edge("begin", (name, "in"), weight=0)
    edges.add_edges_from(((a, "out"), (b, "in"), {"weight": 0}) for a, b in graph.edges)
    return nx.dag_longest_path_length(edges)


@settings(max_examples=60)
@given(cases(), st.integers(0, 9), st.sampled_from([math.inf, 8.0]))
def test_against_an_independent_longest_path(case, latency, bandwidth):
    plan, times = case
    if bandwidth != math.inf:  # all interfaces alike, so that every message takes as long
        plan = plan_of([plan.n], kind=plan.coarse_blocks[0].kind if plan.n > 1 else "paper", source=plan.source)
    message = latency + BYTES / bandwidth
    step = simulate(plan, times, latency=latency, bandwidth=bandwidth, reduce_linear=False).step
    assert step == independent(plan, times, message)


@settings(max_examples=150)
@given(cases(), st.data())
def test_every_start_is_a_longest_path(case, data):
    """In every variant, nothing starts before what it needs or later than it must; a rank does one thing at a time."""
    plan, times = case
    ranks = data.draw(st.integers(1, plan.n))
    timeline = simulate(
        plan,
        times,
        latency=data.draw(st.integers(0, 5)),
        ranks=ranks,
        overlap=data.draw(st.booleans()),
        reduce_linear=data.draw(st.booleans()),
        training=data.draw(st.booleans()),
    )
    graph = nx.DiGraph()
    for i, action in enumerate(timeline.actions):
        graph.add_node(i, taken=action.seconds)
        graph.add_edges_from((other, i) for other in action.after)
    for rank in range(ranks):
        own = [i for i, action in enumerate(timeline.actions) if action.rank == rank and action.kind != "transfer"]
        for a, b in itertools.pairwise(own):
            assert timeline.actions[a].end <= timeline.actions[b].start
            graph.add_edge(a, b)
    assert nx.is_directed_acyclic_graph(graph)
    for i in nx.topological_sort(graph):
        ready = max((timeline.actions[other].end for other in graph.predecessors(i)), default=0.0)
        assert timeline.actions[i].start == ready
    assert timeline.step == longest(graph)
    assert sum(action.seconds for action in timeline.critical_path) == timeline.step
    for action in timeline.actions:
        assert (action.to is None) == (action.kind != "transfer")
        assert action.to != action.rank


@given(cases(), st.integers(0, 5), st.booleans())
def test_overlap_is_never_slower(case, latency, reduce_linear):
    plan, times = case
    how = {"latency": float(latency), "reduce_linear": reduce_linear}
    assert simulate(plan, times, **how).step <= simulate(plan, times, overlap=False, **how).step


@given(cases())
def test_without_overlap_times_add_up_as_in_the_papers_table(case):
    """The slowest segment and the whole coarse chain, each way."""
    plan, times = case
    plan = plan_of([plan.n])
    total = 0.0
    for way in (0, 1):
        own = [times.stem[way] + times.segments[0][way]]
        own += [a[way] + s[way] for a, s in zip(times.adapters, times.segments[1:], strict=True)]
        total += max(own) + sum(c[way] for c in times.coarse) + times.head[way]
    assert simulate(plan, times, overlap=False).step == total


@given(cases())
def test_free_coarse_blocks_and_messages_leave_the_slowest_segment(case):
    plan, times = case
    free = Times(
        stem=(0.0, 0.0),
        segments=times.segments,
        adapters=((0.0, 0.0),) * (plan.n - 1),
        coarse=((0.0, 0.0),) * (plan.n - 1),
        head=(0.0, 0.0),
    )
    slowest = [max(s[way] for s in times.segments) for way in (0, 1)]
    assert simulate(plan, free).step == sum(slowest)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_half_of_the_coarse_cost_disappears(n):
    """The best cut of work W with uniform c: T = W/N + c (N-1)(N+2) / (2N), each way; without overlap, c (N-1)."""
    W, c = 840.0, 6.0
    s = (W - c * (n - 1) * (n - 2) / 2) / n
    own = [s, *(s + (j - 1) * c for j in range(1, n))]
    assert sum(own) == pytest.approx(W)
    none = (0.0, 0.0)

    def times(lengths: list[float]) -> Times:
        coarse = ((c, 2 * c),) * (n - 1)
        segments = tuple((length, 2 * length) for length in lengths)
        return Times(stem=none, segments=segments, adapters=(none,) * (n - 1), coarse=coarse, head=none)

    plan = plan_of([n])
    best = simulate(plan, times(own))
    assert best.step == pytest.approx(3 * (W / n + c * (n - 1) * (n + 2) / (2 * n)))
    assert simulate(plan, times([W / n] * n), overlap=False).step == pytest.approx(3 * (W / n + c * (n - 1)))
    for rank in range(n):  # nothing waits before its coarse block
        fine, *rest = best.of(rank)[:3] if rank == 0 else best.of(rank)[1:3]
        assert rank == 0 or rest[0].start == pytest.approx(fine.end)


@pytest.mark.parametrize("n, depth", [(3, 1), (5, 2), (9, 3), (17, 4)])
def test_a_reduction_has_logarithmic_depth(n, depth):
    """Equal segments, messages of one second, nothing else: ⌈log2⌉ rounds of sums, and one message of z_1."""
    none, latency = (0.0, 0.0), 1.0
    times = Times(
        stem=none, segments=((10.0, 10.0),) * n, adapters=(none,) * (n - 1), coarse=(none,) * (n - 1), head=none
    )
    plan = plan_of([n], kind="linear")
    in_chain = simulate(plan, times, latency=latency, reduce_linear=False)
    reduced = simulate(plan, times, latency=latency, reduce_linear=True)
    assert in_chain.step == 20 + 2 * (n - 1)
    assert reduced.step == 20 + 2 * max(depth, 1)
    sums = [a for a in reduced.actions if a.name.startswith("s") and a.name != "stem"]
    sent = [a for a in reduced.actions if a.name.startswith("t")]
    assert len(sums) == len(sent) == n - 2  # of n - 1 differences, each but the last is sent once
    assert len({a.rank for a in sent}) == n - 2
    gradients = [a for a in reduced.actions if a.kind == "transfer" and a.direction == "backward"]
    assert sorted(a.to for a in gradients) == list(range(n - 1))  # each of the others gets it once


def test_only_identities_are_reduced():
    plan = plan_of([3, 1, 2], kind="linear")
    names = [str(a) for a in simulate(plan, reduce_linear=True, training=False).actions]
    assert {"d2", "d3"} < set(names)  # F^1 and F^2 are identities; F^3 and F^4 change the space, F^5 stands alone
    assert not {"d4", "d5", "d6"} & set(names)
    assert not {"F1"} & set(names)
    assert {"F2", "F3", "F4", "F5"} < set(names)
    assert [str(a) for a in simulate(plan_of([3, 1, 2]), reduce_linear=True).actions] == [
        str(a) for a in simulate(plan_of([3, 1, 2])).actions
    ]


def test_gradients_leave_before_the_segment_is_differentiated():
    timeline = simulate(plan_of([4]))
    for rank in range(1, 4):
        back = [a.name for a in timeline.of(rank) if a.direction == "backward" and a.kind != "head"]
        assert back == [f"F{rank}", f"g{rank + 1}", f"C{rank + 1}"]


def test_fewer_ranks_hold_consecutive_runs():
    timeline = simulate(plan_of([7]), ranks=3)
    held = [sorted({a.j for a in timeline.of(rank)}) for rank in range(3)]
    assert held == [[1, 2, 3], [4, 5], [6, 7]]
    assert [a.name for a in timeline.actions if a.kind == "transfer" and a.direction == "forward"] == ["z3", "z5"]
    chosen = simulate(plan_of([7], kind="linear"), assignment=[1, 4, 2], reduce_linear=True)
    assert [sorted({a.j for a in chosen.of(rank)}) for rank in range(3)] == [[1], [2, 3, 4, 5], [6, 7]]
    sent = [(a.name, a.rank, a.to) for a in chosen.actions if a.kind == "transfer" and a.direction == "forward"]
    assert sorted(sent) == [("t5", 1, 2), ("z1", 0, 2)]
    alone = simulate(plan_of([7]), ranks=1)
    assert alone.step == alone.busy(0)


def test_batch_and_rate_scale_a_counted_plan():
    plan = plan_of([3])
    assert simulate(plan, batch=8, rate=1.0).step == pytest.approx(4 * simulate(plan, rate=1.0).step)
    assert simulate(plan, rate=2.0).step == pytest.approx(simulate(plan, rate=1.0).step / 2)
    slow = simulate(plan, bandwidth=BYTES, batch=8)
    assert [a.seconds for a in slow.actions if a.kind == "transfer"] == pytest.approx([4.0] * 4)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"ranks": 4}, "ranks is 4; pass 1 to 3"),
        ({"ranks": 0}, "ranks is 0"),
        ({"assignment": [2, 2]}, "assignment is [2, 2]; pass how many of the 3 segments each device has"),
        ({"assignment": [3, 0]}, "assignment is [3, 0]"),
        ({"latency": -1.0}, "latency is -1 s"),
        ({"latency": math.nan}, "latency is nan s"),
        ({"bandwidth": 0.0}, "bandwidth 0 bytes/s"),
        ({"batch": 0}, "batch is 0"),
        ({"rate": 0.0}, "rate is 0"),
    ],
)
def test_numbers_that_cannot_be(how, message):
    with pytest.raises(PlanError) as raised:
        simulate(plan_of([3]), **how)
    assert message in str(raised.value)


def test_costs_of_another_network():
    two = Times(stem=(0, 0), segments=((1, 1), (1, 1)), adapters=((0, 0),), coarse=((0, 0),), head=(0, 0))
    with pytest.raises(PlanError, match="costs are of 2 segments and the plan has 3"):
        simulate(plan_of([3]), two)
