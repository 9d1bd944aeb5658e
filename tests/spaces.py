"""Spaces for tests: one by its shape, and strategies of vectors, tokens and maps."""

from hypothesis import strategies as st
from torch import nn

from pararealize.analysis.space import Space


def space(*shape, channel=0, dtype="float32"):
    return Space(shape=shape, channel=channel, dtype=dtype)


@st.composite
def spaces(draw):
    """Vectors, tokens, maps of one to four axes; channels first, last, and now and then in between."""
    extent = draw(st.lists(st.integers(1, 12), min_size=0, max_size=4))
    channel = draw(st.sampled_from([0, len(extent), len(extent) // 2]))
    shape = (*extent[:channel], draw(st.integers(1, 7)), *extent[channel:])
    return space(*shape, channel=channel, dtype=draw(st.sampled_from(["float32", "float64"])))


@st.composite
def ended_spaces(draw):
    """Vectors, tokens and maps of one to three axes, with channels first or last: what coarse units work on."""
    extent = draw(st.lists(st.integers(1, 9), min_size=0, max_size=3))
    channels = draw(st.integers(1, 9))
    return space(*extent, channels, channel=len(extent)) if draw(st.booleans()) else space(channels, *extent)


def is_strided_and_pointwise(module):
    """Whether its gradient in channels-last may be written beyond its memory, see ``Subsample``."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    return set(module.kernel_size) == {1} and max(module.stride) > 1
