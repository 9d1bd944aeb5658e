"""Receptive-field rules of operations that slide a kernel: convolutions, pools, padding, resampling.

Each is exact or a cover: it may name positions that an operation does not read (the holes of a dilation, the borders of
a reflection), never the reverse. Sizes, strides and starts are in positions of the operation's own input.
"""

from fractions import Fraction

from .reach import Call, Interval, Reach, Rule, mix, per_axis, plain, shape_of, slide

__all__ = ["adaptive", "convolution", "interpolation", "norm_pooling", "padding", "pooling", "rescaling", "transposed"]


def _convolution_intervals(call: Call, axes: int) -> list[Interval | None]:
    """Windows of a convolution: ``size = dilation (kernel - 1) + 1``, ``start = -padding``."""
    weight = call.argument(1, "weight")
    kernel = tuple(weight.shape if call.module is not None else shape_of(weight))[-axes:]
    stride, dilation = per_axis(call.argument(3, "stride", 1), axes), per_axis(call.argument(5, "dilation", 1), axes)
    sizes = [int(d) * (int(k) - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = call.argument(4, "padding", 0)
    if isinstance(padding, str):
        padding = tuple((size - 1) // 2 if padding == "same" else 0 for size in sizes)
    mode = getattr(call.module, "padding_mode", "zeros")
    intervals: list[Interval | None] = []
    for size, step, pad in zip(sizes, stride, per_axis(padding, axes), strict=True):
        bordered = mode == "zeros" or pad == 0 or (mode != "circular" and 2 * pad <= size - 1)
        intervals.append(Interval(size, step, -pad) if bordered else None)  # a reflection may read outside it
    return intervals


def _transposed_intervals(call: Call, axes: int) -> list[Interval | None]:
    """Windows of a transposed convolution: position o reads (o + p - d (k-1)) / s to (o + p) / s."""
    weight = call.argument(1, "weight")
    kernel = tuple(weight.shape if call.module is not None else shape_of(weight))[-axes:]
    stride, padding = per_axis(call.argument(3, "stride", 1), axes), per_axis(call.argument(4, "padding", 0), axes)
    dilation = per_axis(call.argument(7, "dilation", 1), axes)
    reach = [int(d) * (int(k) - 1) for k, d in zip(kernel, dilation, strict=True)]
    return [
        Interval(Fraction(r, s) + 1, Fraction(1, s), Fraction(p - r, s))
        for r, s, p in zip(reach, stride, padding, strict=True)
    ]


def _along_last(call: Call, axes: int, intervals: list[Interval | None]) -> Reach:
    """Windows along the last ``axes`` dimensions; the channels before them are all read."""
    rank = len(shape_of(call.source))
    mixed = mix(call.reaches[call.source], [rank - axes - 1])
    return slide(mixed, dict(zip(range(rank - axes, rank), intervals, strict=True)))


def convolution(axes: int) -> Rule:
    """A convolution over ``axes`` dimensions of space."""
    return lambda call: _along_last(call, axes, _convolution_intervals(call, axes))


def transposed(axes: int) -> Rule:
    """A transposed convolution over ``axes`` dimensions of space."""
    return lambda call: _along_last(call, axes, _transposed_intervals(call, axes))


def pooling(axes: int, dilated: bool) -> Rule:
    """A pool: ``size = dilation (kernel - 1) + 1``, ``stride = kernel`` where none is given."""

    def rule(call: Call) -> Reach:
        kernel = per_axis(call.argument(1, "kernel_size"), axes)
        stride = per_axis(call.argument(2, "stride") or kernel, axes)
        padding = per_axis(call.argument(3, "padding", 0), axes)
        dilation = per_axis(call.argument(4, "dilation", 1) if dilated else 1, axes)
        rank = len(shape_of(call.source))
        rows = zip(kernel, stride, padding, dilation, strict=True)
        intervals = [Interval(int(d) * (int(k) - 1) + 1, int(s), -int(p)) for k, s, p, d in rows]
        return slide(call.reaches[call.source], dict(zip(range(rank - axes, rank), intervals, strict=True)))

    return rule


def norm_pooling(axes: int) -> Rule:
    """``lp_pool``: kernel and stride stand one place later than in the other pools, without padding."""

    def rule(call: Call) -> Reach:
        kernel = per_axis(call.argument(2, "kernel_size"), axes)
        stride = per_axis(call.argument(3, "stride") or kernel, axes)
        rank = len(shape_of(call.source))
        intervals = [Interval(int(k), int(s)) for k, s in zip(kernel, stride, strict=True)]
        return slide(call.reaches[call.source], dict(zip(range(rank - axes, rank), intervals, strict=True)))

    return rule


def adaptive(axes: int) -> Rule:
    """An adaptive pool: exact where the sizes divide, global to one position, otherwise a cover of its bins."""

    def interval(size: int, target: int) -> Interval | None:
        if target == 1 and size > 1:
            return None
        ratio = Fraction(size, target)
        spill = Fraction(ratio.denominator - 1, ratio.denominator)  # floor(o r) >= o r - spill, and ceil alike
        return Interval(plain(ratio + 2 * spill), plain(ratio), plain(-spill))

    def rule(call: Call) -> Reach:
        sizes, targets = shape_of(call.source), shape_of(call.node)
        rank = len(sizes)
        return slide(call.reaches[call.source], {d: interval(sizes[d], targets[d]) for d in range(rank - axes, rank)})

    return rule


def interpolation(call: Call) -> Reach:
    """Nearest reads ``floor(o r)``, linear one position on either side of ``(o + 1/2) r - 1/2``, cubic two."""
    mode = call.argument(3, "mode", "nearest")
    scale = None if call.argument(5, "recompute_scale_factor") else call.argument(2, "scale_factor")
    corners, smooth = bool(call.argument(4, "align_corners")), bool(call.argument(6, "antialias", False))
    sizes, targets = shape_of(call.source), shape_of(call.node)
    axes = len(sizes) - 2
    scales = per_axis(scale, axes) if scale is not None else (None,) * axes

    def interval(size: int, target: int, factor: float | None) -> Interval | None:
        ratio = Fraction(size, target) if factor is None else 1 / Fraction(factor).limit_denominator(4096)
        if corners:
            ratio = Fraction(size - 1, target - 1) if target > 1 else Fraction(0)
        if ratio == 0:
            return None
        if mode in ("nearest", "area"):
            spill = Fraction(ratio.denominator - 1, ratio.denominator)
            size_of = 1 + spill if mode == "nearest" else ratio + 2 * spill
            return Interval(plain(size_of), plain(ratio), plain(-spill))
        if mode == "nearest-exact":
            return Interval(2, plain(ratio), plain(ratio / 2 - 1))
        margin = (2 if mode == "bicubic" else 1) * (max(ratio, Fraction(1)) if smooth else 1)
        offset = Fraction(0) if corners else ratio / 2 - Fraction(1, 2)
        return Interval(plain(1 + 2 * margin), plain(ratio), plain(offset - margin))

    intervals = {d + 2: interval(sizes[d + 2], targets[d + 2], scales[d]) for d in range(axes)}
    return slide(call.reaches[call.source], intervals)


def rescaling(upwards: bool) -> Rule:
    """Pixel shuffle (up) and unshuffle (down) by a factor."""

    def rule(call: Call) -> Reach:
        name = "upscale_factor" if upwards else "downscale_factor"
        factor, rank = int(call.argument(1, name)), len(shape_of(call.source))
        spill = Fraction(factor - 1, factor)
        interval = Interval(1 + spill, Fraction(1, factor), -spill) if upwards else Interval(factor, factor)
        return slide(mix(call.reaches[call.source], [rank - 3]), {rank - 2: interval, rank - 1: interval})

    return rule


def padding(call: Call) -> Reach:
    """Constant padding moves the interval; reflection, replication and wrapping also read back from the border."""
    pads = call.argument(1, "pad") if call.module is None else call.argument(1, "padding")
    mode = call.argument(2, "mode", "constant")
    if call.module is not None:
        kinds = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
        mode = next((kinds[k] for k in kinds if type(call.module).__name__.startswith(k)), "constant")
    rank = len(shape_of(call.source))
    pads = per_axis(pads, 2)
    intervals: dict[int, Interval | None] = {}
    for place in range(len(pads) // 2):
        left, right = int(pads[2 * place]), int(pads[2 * place + 1])
        if mode == "constant" or (left <= 0 and right <= 0):
            interval: Interval | None = Interval(1, 1, -left)
        else:  # o - left, or its mirror image: at most o + left near the first border, 2 right further back at the last
            before, after = max(right, 0) * 2, max(left, 0) * 2
            interval = None if mode == "circular" else Interval(1 + before + after, 1, -left - before)
        intervals[rank - 1 - place] = interval
    return slide(call.reaches[call.source], intervals)
