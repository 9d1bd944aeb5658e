"""Who passes z or sums to whom, as plain data: every message has both ends, and what arrives is the whole sum."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pararealize.network.parareal import corrections
from pararealize.plan.peers import peers_of, rounds


@st.composite
def cases(draw, most: int = 24):
    """Runs of segments, and which coarse maps are identities."""
    counts = draw(st.lists(st.integers(1, 3), min_size=1, max_size=most))
    ends = list(itertools.accumulate(counts))
    runs = [(end - count + 1, end) for end, count in zip(ends, counts, strict=True)]
    identities = draw(st.sets(st.integers(1, max(ends[-1] - 1, 1)), max_size=ends[-1]))
    if draw(st.booleans()):  # nearly all
        identities = set(range(1, ends[-1])) - set(draw(st.lists(st.integers(1, ends[-1]), max_size=3)))
    return runs, identities


@given(cases())
def test_every_message_has_both_ends(case):
    runs, identities = case
    every = peers_of(runs, identities)
    for rank, peers in enumerate(every):
        if peers.z_to is not None:
            assert every[peers.z_to].z_from == rank
        if peers.z_from is not None:
            assert every[peers.z_from].z_to == rank
        if peers.sum_to is not None:
            assert every[peers.sum_to].sums_from.count(rank) == 1
            assert (peers.z_from, peers.z_to) == (None, None)
        for sender in peers.sums_from:
            assert every[sender].sum_to == rank
        assert {j - 1 for j in peers.terms} <= identities
        if not peers.terms:
            assert peers.sums_from == ()
    messages = sum((c.z_to is not None) + (c.sum_to is not None) for c in every)
    assert messages == len(runs) - 1


@given(cases(), st.data())
def test_what_arrives_is_what_the_chain_gives(case, data):
    """Each rank does what its peers say, with whole numbers; the last one has z_N of the recursion."""
    runs, identities = case
    n = runs[-1][1]
    number = st.integers(-9, 9)
    x, y = ([0, *data.draw(st.lists(number, min_size=n, max_size=n))] for _ in range(2))
    maps = [(lambda r: r) if j in identities else (lambda r, j=j: -2 * r + j) for j in range(1, n)]
    every = peers_of(runs, identities)

    def total(rank: int) -> int:
        peers = every[rank]
        return sum(y[j] - x[j] for j in peers.terms) + sum(map(total, peers.sums_from))

    def z(rank: int) -> int:
        (first, last), peers = runs[rank], every[rank]
        value = y[1] if peers.z_from is None else z(peers.z_from)
        begin = max(first, 2)
        if peers.terms:
            value, begin = value + total(rank), peers.terms.stop
        for j in range(begin, last + 1):
            value = y[j] + maps[j - 2](value - x[j])
        return value

    assert z(len(runs) - 1) == corrections(x[1:], y[1:], maps)[-1]


@given(cases())
def test_no_sum_could_be_longer(case):
    """Interfaces between ranks that a sum does without are all that it could do without, save sums of one rank."""
    runs, identities = case
    every = peers_of(runs, identities)
    whole = [all(j - 1 in identities for j in range(first, last + 1)) for first, last in runs]
    for rank in range(1, len(runs) - 1):
        first_behind = runs[rank + 1][0]
        summed = every[rank].z_to != rank + 1 and every[rank].sum_to is not None
        assert summed == (whole[rank] and first_behind - 1 in identities)


@given(st.integers(1, 300))
def test_pairs_are_as_few_rounds_as_can_be(count):
    found = rounds(range(count))
    assert len(found) == math.ceil(math.log2(count))
    senders = Counter(sender for pairs in found for _, sender in pairs)
    assert senders == Counter(range(1, count))  # everybody but the first sends, once
    gone: set[int] = set()
    for pairs in found:
        busy = [rank for pair in pairs for rank in pair]
        assert len(busy) == len(set(busy))  # nobody does two things in a round
        assert not gone & set(busy)
        gone |= {sender for _, sender in pairs}


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_ranks_have_nothing_to_sum(ranks):
    runs = [(rank + 1, rank + 1) for rank in range(ranks)]
    assert peers_of(runs, range(9)) == peers_of(runs)


def test_without_identities_messages_go_in_a_row():
    assert [(c.z_from, c.z_to, list(c.terms)) for c in peers_of([(1, 2), (3, 3), (4, 6)])] == [
        (None, 1, []),
        (0, 2, []),
        (1, None, []),
    ]
