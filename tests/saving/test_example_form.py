"""Example inputs as plain data: the form comes back, the user's values do not."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.errors import CheckpointError, ExampleError
from pararealize.saving.example_form import example_from, form_of_example

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=3))


@st.composite
def tensors(draw):
    sizes = draw(st.lists(st.integers(0, 3), max_size=3))
    return torch.randint(0, 5, sizes).to(draw(DTYPES))


NESTED = st.recursive(
    st.one_of(tensors(), PLAIN),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.tuples(inner), st.dictionaries(st.text("ab", max_size=2), inner, max_size=2)
    ),
    max_leaves=5,
)


def alike(one, two):
    if isinstance(one, torch.Tensor):
        return (one.shape, one.dtype) == (two.shape, two.dtype)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(alike(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(alike, one, two))
    return type(one) is type(two) and one == two


@settings(max_examples=40)
@given(st.lists(NESTED, min_size=1, max_size=2))
def test_the_form_survives_json(values):
    for args, kwargs in ((tuple(values), {}), ((), {f"x{i}": value for i, value in enumerate(values)})):
        form = form_of_example(args, kwargs)
        again = example_from(json.loads(json.dumps(form)))
        assert alike(kwargs or args, again)
        assert form_of_example(*(((), again) if kwargs else (again, {}))) == form


def test_whose_values_stay():
    """Of samples nothing; a mask stays, and whole numbers become one that was there."""
    ids, mask = torch.tensor([[7, 3], [2, 5]]), torch.tensor([[True, False], [True, True]])
    image = torch.randn(2, 3)
    again = example_from(form_of_example((), {"image": image, "ids": ids, "mask": mask, "ones": torch.ones(2)}))
    assert torch.equal(again["mask"], mask)
    assert torch.equal(again["ids"], torch.full((2, 2), 7))
    assert torch.equal(again["ones"], torch.ones(2))
    assert not (again["image"] == image).any()


def test_what_no_file_holds():
    with pytest.raises(ExampleError, match="a object among the example inputs has no form"):
        form_of_example((object(),), {})


@pytest.mark.parametrize(
    "form",
    [
        {}, {"args": [{}], "kwargs": {}}, {"args": [{"tensor": [1 << 40], "dtype": "int8"}], "kwargs": {}},
        {"args": [{"tensor": [1], "dtype": "load"}], "kwargs": {}}, {"args": [{"value": []}], "kwargs": {}},
        {"args": [{"tensor": [-1], "dtype": "int8"}], "kwargs": {}}, [], None,
    ],
)  # fmt: skip
def test_damaged_forms(form):
    with pytest.raises(CheckpointError, match="the example inputs of a saved network cannot be read"):
        example_from(form)
