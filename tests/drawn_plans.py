"""Plans written by hand, for tests of what prints and draws them: no network is captured."""

from dataclasses import replace

from pararealize.analysis.space import Space
from pararealize.coarse.spec import AdapterPlan, CoarsePlan
from pararealize.plan.plan import PartPlan, Plan, SegmentPlan

SPACES = [Space(shape=shape, channel=0, dtype="float32") for shape in [(64, 32, 32), (128, 16, 16), (256, 8, 8)]]
IMAGE = Space(shape=(3, 32, 32), channel=0, dtype="float32")


def cost(amount):
    return {
        "flops_forward": int(amount),
        "flops_backward": int(2 * amount),
        "cost_forward": float(amount),
        "cost_backward": 2.0 * amount,
    }


def make_plan(n=3, *, source="input", uneven=False, unit="flops", name="stage{stage}.{i}", notes=()):
    """``n`` segments of 10 blocks each, over three stages."""

    def segment(j):
        first, last = 10 * (j - 1), 10 * j - 1
        names = [name.format(stage=1 + 3 * i // (10 * n), i=i) for i in (first, last)]
        return SegmentPlan(
            j=j, first=first, last=last, first_block=names[0], last_block=names[1], blocks=10,
            x=SPACES[max(0, 3 * (j - 2) // n)], y=SPACES[3 * (j - 1) // n], parameters=870_000 + j,
            device=f"cuda:{j - 1}" if uneven else "cpu", **cost(1e9 * (j / n if uneven else 1)),
        )  # fmt: skip

    segments = tuple(segment(j) for j in range(1, n + 1))
    return Plan(
        model="PreActResNet", fingerprint="0123456789abcdef", n=n, coarse="paper", cuts="cost", source=source, batch=2,
        unit=unit, stem=PartPlan(parameters=432, **cost(1e6)), head=PartPlan(parameters=3082, **cost(1e4)),
        segments=segments,
        adapters=tuple(
            AdapterPlan(
                j=s.j, source=source, x=IMAGE if source == "input" else segments[0].x, y=s.x, parameters=256 * s.j,
                recipe="conv 1×1", **cost(1e6),
            )
            for s in segments[1:]
        ),
        coarse_blocks=tuple(
            CoarsePlan(j=s.j - 1, kind="paper", units=1, kernel=0, x=s.x, y=s.y, parameters=500_000, note="",
                       **cost(2e8))
            for s in segments[1:]
        ),
        notes=notes,
    )  # fmt: skip


def in_windows(plan, *lengths):
    """Windows of so many segments each, one after the other, all of the space of the plan's first segment."""
    first, adapter, coarse = plan.segments[0], plan.adapters[0], plan.coarse_blocks[0]
    space, segments, adapters, coarse_blocks = first.x, [], [], []
    for number, length in enumerate(lengths, 1):
        m = number if len(lengths) > 1 else 0
        for j in range(1, length + 1):
            start = first.blocks * len(segments)
            last = start + first.blocks - 1
            names = {"first_block": f"blocks.{start}", "last_block": f"blocks.{last}"}
            segments.append(replace(first, m=m, j=j, first=start, last=last, y=space, **names))
            if j > 1:
                adapters.append(replace(adapter, m=m, j=j, source="window" if m else "stem", x=space, y=space))
                coarse_blocks.append(replace(coarse, m=m, j=j - 1, x=space, y=space))
    return replace(
        plan, n=max(lengths), source="stem", segments=tuple(segments), adapters=tuple(adapters),
        coarse_blocks=tuple(coarse_blocks),
    )  # fmt: skip
