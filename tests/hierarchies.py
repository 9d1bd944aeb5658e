"""Random levels of multigrid, with transitions between chains, for hypothesis."""

from hypothesis import strategies as st

from pararealize.multigrid.solver.hierarchy import Hierarchy, make_hierarchy


@st.composite
def hierarchies(draw) -> tuple[list[bool], Hierarchy]:
    """Chains of random lengths with transitions between them, and levels that fit."""
    chains = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    fixed = [False] * chains[0] + [n < 0 for chain in chains[1:] for n in [-1, *range(chain)]]
    coarsening = draw(st.integers(2, 4))
    longest, most = max(chains), 1
    while longest > 1:
        longest, most = -(-longest // coarsening), most + 1
    levels = draw(st.integers(2, max(2, most)))
    if most < 2 or coarsening > max(chains):
        return [False, False], make_hierarchy([False, False], 2, 2)
    return fixed, make_hierarchy(fixed, levels, coarsening)
