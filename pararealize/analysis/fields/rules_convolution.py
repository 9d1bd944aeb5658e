"""Receptive-field rules of operations that slide a kernel: convolutions, pools, padding, resampling.

Each is exact or a cover: it may name positions that an operation does not read (the holes of a dilation, the borders of
a reflection), never the reverse. Sizes, strides and starts are in positions of the operation's own input.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from .reach import Call, Interval, Reach, Rule, mix, per_axis, plain, shape_of, slide


def _along_last(call: Call, intervals: Sequence[Interval | None], *, mixes_channels: bool = False) -> Reach:
    """A kernel along the last dimensions, one interval for each; a convolution reads all channels, before them."""
    first = call.rank - len(intervals)
    reach = mix(call.reach, [first - 1]) if mixes_channels else call.reach
    return slide(reach, dict(enumerate(intervals, first)))


def _spans(call: Call, axes: int, dilation: int) -> list[int]:
    """``dilation (kernel - 1)`` along each axis of a convolution, whose dilation stands at that argument."""
    weight = call.argument(1, "weight")
    kernel = tuple(weight.shape if call.module is not None else shape_of(weight))[-axes:]
    dilations = per_axis(call.argument(dilation, "dilation", 1), axes)
    return [int(d) * (int(k) - 1) for k, d in zip(kernel, dilations, strict=True)]


def convolution(axes: int) -> Rule:
    """A convolution over ``axes`` dimensions of space: ``size = dilation (kernel - 1) + 1``, ``start = -padding``."""

    def rule(call: Call) -> Reach:
        spans, stride = _spans(call, axes, 5), per_axis(call.argument(3, "stride", 1), axes)
        padding = call.argument(4, "padding", 0)
        if isinstance(padding, str):
            padding = tuple(span // 2 if padding == "same" else 0 for span in spans)
        mode = getattr(call.module, "padding_mode", "zeros")
        intervals: list[Interval | None] = []
        for span, step, pad in zip(spans, stride, per_axis(padding, axes), strict=True):
            bordered = mode == "zeros" or pad == 0 or (mode != "circular" and 2 * pad <= span)
            intervals.append(Interval(span + 1, step, -pad) if bordered else None)  # a reflection may read outside it
        return _along_last(call, intervals, mixes_channels=True)

    return rule


def transposed(axes: int) -> Rule:
    """A transposed convolution: position o reads from (o + p - d (k-1)) / s to (o + p) / s."""

    def rule(call: Call) -> Reach:
        stride, padding = per_axis(call.argument(3, "stride", 1), axes), per_axis(call.argument(4, "padding", 0), axes)
        rows = zip(_spans(call, axes, 7), stride, padding, strict=True)
        intervals = [Interval(Fraction(r, s) + 1, Fraction(1, s), Fraction(p - r, s)) for r, s, p in rows]
        return _along_last(call, intervals, mixes_channels=True)

    return rule


def _pool(call: Call, axes: int, position: int, padding: Any = 0, dilation: Any = 1) -> Reach:
    """The rule of a pool whose kernel and stride stand from ``position`` on; the stride is the kernel if left out."""
    kernel = per_axis(call.argument(position, "kernel_size"), axes)
    stride = per_axis(call.argument(position + 1, "stride") or kernel, axes)
    rows = zip(kernel, stride, per_axis(padding, axes), per_axis(dilation, axes), strict=True)
    return _along_last(call, [Interval(int(d) * (int(k) - 1) + 1, int(s), -int(p)) for k, s, p, d in rows])


def pooling(axes: int, dilated: bool) -> Rule:
    """A pool: ``size = dilation (kernel - 1) + 1``, ``stride = kernel`` where none is given."""
    return lambda call: _pool(
        call, axes, 1, call.argument(3, "padding", 0), call.argument(4, "dilation", 1) if dilated else 1
    )


def norm_pooling(axes: int) -> Rule:
    """``lp_pool``: kernel and stride stand one place later than in the other pools, without padding."""
    return lambda call: _pool(call, axes, 2)


def _bins(ratio: Fraction) -> Interval:
    """A cover of the bins that an average pool over ``ratio`` positions reads."""
    spill = Fraction(ratio.denominator - 1, ratio.denominator)  # floor(o r) >= o r - spill, and ceil alike
    return Interval(plain(ratio + 2 * spill), plain(ratio), plain(-spill))


def adaptive(axes: int) -> Rule:
    """An adaptive pool: exact where the sizes divide, global to one position, otherwise a cover of its bins."""

    def rule(call: Call) -> Reach:
        sizes = list(zip(shape_of(call.source), shape_of(call.node), strict=True))[-axes:]
        return _along_last(call, [None if a > b == 1 else _bins(Fraction(a, b)) for a, b in sizes])

    return rule


def interpolation(call: Call) -> Reach:
    """Nearest reads ``floor(o r)``, linear one position on either side of ``(o + 1/2) r - 1/2``, cubic two."""
    mode = call.argument(3, "mode", "nearest")
    scale = None if call.argument(5, "recompute_scale_factor") else call.argument(2, "scale_factor")
    corners, smooth = bool(call.argument(4, "align_corners")), bool(call.argument(6, "antialias", False))
    sizes, targets = shape_of(call.source), shape_of(call.node)
    scales = per_axis(scale, call.rank - 2)

    def interval(size: int, target: int, factor: float | None) -> Interval | None:
        ratio = Fraction(size, target) if factor is None else 1 / Fraction(factor).limit_denominator(4096)
        if corners:
            ratio = Fraction(size - 1, target - 1) if target > 1 else Fraction(0)
        if ratio == 0:
            return None
        if mode == "area":
            return _bins(ratio)
        if mode == "nearest":
            spill = Fraction(ratio.denominator - 1, ratio.denominator)
            return Interval(plain(1 + spill), plain(ratio), plain(-spill))
        if mode == "nearest-exact":
            return Interval(2, plain(ratio), plain(ratio / 2 - 1))
        margin = (2 if mode == "bicubic" else 1) * (max(ratio, Fraction(1)) if smooth else 1)
        offset = Fraction(0) if corners else ratio / 2 - Fraction(1, 2)
        return Interval(plain(1 + 2 * margin), plain(ratio), plain(offset - margin))

    return _along_last(call, list(map(interval, sizes[2:], targets[2:], scales)))


def rescaling(upwards: bool) -> Rule:
    """Pixel shuffle (up) and unshuffle (down) by a factor."""

    def rule(call: Call) -> Reach:
        name = "upscale_factor" if upwards else "downscale_factor"
        factor = int(call.argument(1, name))
        spill = Fraction(factor - 1, factor)
        interval = Interval(1 + spill, Fraction(1, factor), -spill) if upwards else Interval(factor, factor)
        return _along_last(call, [interval] * 2, mixes_channels=True)

    return rule


def padding(call: Call) -> Reach:
    """Constant padding moves the interval; reflection, replication and wrapping also read back from the border."""
    pads = [int(pad) for pad in per_axis(call.argument(1, "pad" if call.module is None else "padding"), 2)]
    mode = call.argument(2, "mode", "constant") if call.module is None else type(call.module).__name__.lower()
    intervals: list[Interval | None] = []
    for left, right in zip(pads[::2], pads[1::2], strict=False):  # from the last dimension to the first
        if mode.startswith(("constant", "zero")) or (left <= 0 and right <= 0):
            intervals.append(Interval(1, 1, -left))
        elif mode.startswith("circular"):
            intervals.append(None)
        else:  # o - left, or its mirror image: at most o + left near the first border, 2 right further back at the last
            before, after = max(right, 0) * 2, max(left, 0) * 2
            intervals.append(Interval(1 + before + after, 1, -left - before))
    return _along_last(call, intervals[::-1])
