"""Values that are on one rank each: a program computes on them what one process computes, message by message."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from pararealize.distributed.messages.message_order import StepMessages
from pararealize.distributed.messages.point_to_point import PointToPoint
from pararealize.distributed.watchdog.watchdog import Watch
from pararealize.multigrid.distributed.spmd import ReceiveOrder, RemoteMaps, RemoteValue, SpmdContext
from pararealize.multigrid.solver.hierarchy import make_hierarchy
from pararealize.multigrid.solver.solver import solve_and_sweep
from tests.ranks import on_ranks

HIERARCHY = make_hierarchy([False] * 9, levels=3, coarsening=2)


class Maps:
    """u ↦ u + w·sin(n·u) for layer n: no two layers are alike."""

    hierarchy = HIERARCHY

    def step(self, level, s, u):
        step = HIERARCHY.levels[level].steps[s]
        return u + 0.1 * step.width * torch.sin(step.layer * u)

    def sweep(self, j, u):
        for s in range(*HIERARCHY.levels[0].intervals[j]):
            u = self.step(0, s, u)
        return u


def messages_of():
    who = [f"rank {rank}" for rank in range(dist.get_world_size())]
    watch = Watch(dist.group.WORLD, who=who, timeout=20.0)
    limit = timedelta(seconds=20)
    channel = PointToPoint(dist.group.WORLD, dist.group.WORLD, torch.device("cpu"), limit, who.__getitem__, watch)
    return StepMessages(channel, {})


def owners_of(ranks):
    owners = [0] * HIERARCHY.layers
    for rank, share in enumerate(HIERARCHY.share(ranks)):
        for j in share:
            for n in range(*HIERARCHY.levels[0].intervals[j]):
                owners[n] = rank
    return owners


START = torch.linspace(-1, 1, 5, dtype=torch.float64)


def solved(tolerance):
    """The same solve three times; from the second on, receives are posted ahead."""
    messages, ranks = messages_of(), dist.get_world_size()
    order, found = ReceiveOrder(), []
    for _ in range(3):
        context = SpmdContext(messages, order if tolerance == 0 else None, tolerance)
        maps = RemoteMaps(context, Maps(), owners_of(ranks), lambda n, width: f"u_{n + width}", lambda *_: None)
        context.begin_solve()
        u = RemoteValue(context, 0, "u_0", START if context.rank == 0 else None)
        end, solution = solve_and_sweep(
            u, HIERARCHY, maps.step, maps.sweep, announce=maps.announce, iterations=3, tolerance=tolerance,
            norm=context.norm,
        )  # fmt: skip
        value = end.on(ranks - 1)
        context.end_solve()
        norms = context.norms() or [*solution.residuals, solution.size]
        messages.channel.flush()
        messages.formats_known = True
        found.append((None if value is None else value.tolist(), norms))
    return found, len(order.values)


def reference(tolerance):
    def norm(residuals):
        return float(torch.stack([torch.linalg.vector_norm(r) for r in residuals]).square().sum().sqrt())

    maps = Maps()
    end, solution = solve_and_sweep(
        START, HIERARCHY, maps.step, maps.sweep, iterations=3, tolerance=tolerance, norm=norm
    )
    return end.tolist(), [*solution.residuals, solution.size]


def test_three_ranks_solve_as_one_process_does() -> None:
    for tolerance in (0.0, 1e-3):
        expected, norms = reference(tolerance)
        ranks = on_ranks(3, solved, tolerance)
        for rank, (found, received) in enumerate(ranks):
            for value, seen in found:
                assert value == (expected if rank == 2 else None)  # to the bit
                assert torch.allclose(torch.tensor(seen), torch.tensor(norms), rtol=1e-12)
            assert (received > 0) == (tolerance == 0 and rank > 0)
