"""The table of coarse kinds: names, what gives way to what, and errors for what is none."""

import functools

import pytest

from pararealize.coarse import kinds
from pararealize.errors import CoarseError
from tests.spaces import space

STAGES = (space(64, 32, 32), space(128, 16, 16), space(256, 8, 8))


def wrong_shape(segment, x_shape, y_shape):
    """A builder; it is asked for its name alone."""


def test_names_and_fall_back():
    assert kinds.coarse_name("paper") == "paper"
    assert kinds.coarse_name(wrong_shape) == "wrong_shape"
    scale = functools.partial(wrong_shape)
    scale.__qualname__ = "scale"  # a plan with this name would promise the kind
    assert kinds.coarse_name(scale) == "scale()"
    tokens, vector = space(197, 768, channel=1), space(512)
    assert kinds.kind_for("paper", *STAGES[:2]) == ("paper", "")
    assert kinds.kind_for("linear", tokens, tokens) == ("linear", "")
    for kind in ("paper", "depthwise"):
        for pair in ((tokens, tokens), (STAGES[0], vector), (vector, vector), (space(2, 3, 4, 5), space(2, 4, 4))):
            given_kind, note = kinds.kind_for(kind, *pair)
            assert given_kind == "block"
            assert kind in note


@pytest.mark.parametrize("wrong", ["papr", "depth", 3, None, ""])
def test_unknown_kind(wrong):
    with pytest.raises(
        CoarseError, match=r"no coarse kind .*; pass one of 'paper', 'depthwise', 'bottleneck', 'linear', 'block'"
    ):
        kinds.coarse_name(wrong)
    if wrong == "papr":
        with pytest.raises(CoarseError, match="did you mean 'paper'"):
            kinds.coarse_name(wrong)


def test_every_row_is_built_in_one_way_and_gives_way_to_another_row():
    for name, row in kinds.KIND_TABLE.items():
        assert row.name == name
        assert (row.build is None) != (row.blocks is None)
        assert (row.misfit is None) == (row.fallback == "")
        assert row.fallback in ("", *kinds.KINDS)
