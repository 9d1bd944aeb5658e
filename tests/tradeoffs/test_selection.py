"""Selections of windows: no overlap, and no other selection that is both faster and nearer."""

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from pararealize.tradeoffs.selection import selections
from pararealize.tradeoffs.sensitivity import WindowTrial

shares = st.lists(st.floats(0.3, 1.0), min_size=6, max_size=6)
errors = st.lists(st.floats(0.01, 1.0), min_size=6, max_size=6)
costs = st.lists(st.floats(0.5, 2.0), min_size=2, max_size=6)


@given(costs, st.data())
def test_the_lower_hull_of_all_selections(costs: list[float], data: st.DataObject) -> None:
    spans = [(a, b) for a in range(len(costs)) for b in range(a + 2, len(costs) + 1)]
    some = data.draw(st.lists(st.sampled_from(spans), max_size=6, unique=True))
    trials = [
        WindowTrial(
            starts=(a, a + 1),
            stop=b,
            cost=data.draw(st.floats(0.3, 1.0)) * sum(costs[a:b]),
            error=data.draw(st.floats(0.01, 1.0)),
        )
        for a, b in some
    ]
    front = selections(costs, trials)
    assert (front[0].windows, front[0].time) == ((), sum(costs))  # the original
    possible = []
    for chosen in itertools.chain.from_iterable(itertools.combinations(trials, k) for k in range(len(trials) + 1)):
        spans_of = sorted((t.first, t.stop) for t in chosen)
        if all(a[1] <= b[0] for a, b in itertools.pairwise(spans_of)):
            inside = {i for t in chosen for i in range(t.first, t.stop)}
            time = sum(t.cost for t in chosen) + sum(c for i, c in enumerate(costs) if i not in inside)
            possible.append((time, math.sqrt(sum(t.error**2 for t in chosen))))
    for selection in front:
        ends = [(w.first, w.stop) for w in selection.windows]
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ends))
        assert not any(t < selection.time - 1e-9 and e < selection.error - 1e-9 for t, e in possible)
    assert min(s.time for s in front) <= min(t for t, _ in possible) + 1e-9  # the fastest is among them
