"""The inputs that a model is read with: of options, or of a folder, and nothing said twice."""

import pytest
import torch

from pararealize import pararealize
from pararealize.errors import ExampleError
from pararealize_cli.example_options import ExampleOptions
from tests.models import Perceptron


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    net = pararealize(Perceptron(), 2, example_inputs=torch.randn(3, 8))
    return str(net.save(tmp_path_factory.mktemp("example") / "net"))


def test_inputs_of_options():
    options = ExampleOptions(batch_size=3, input_shape="3,8,8", input_dtype="float64")
    example = options.values("resnet20")
    assert (example.shape, example.dtype, options.samples(example)) == ((3, 3, 8, 8), torch.float64, 3)
    assert ExampleOptions().values("resnet20").shape == (2, 3, 32, 32)
    named = ExampleOptions(inputs=["use_cache=false", "ids=5x7:int64"])
    assert named.samples(named.values("nets.py:deep", meta=True)) == 5
    assert (ExampleOptions().samples(None), ExampleOptions(batch_size=4).samples(None)) == (2, 4)


@pytest.mark.parametrize("meta", [False, True])
def test_a_folder_has_inputs_of_as_many_samples_as_are_asked_for(folder, meta):
    for options, samples in ((ExampleOptions(), 3), (ExampleOptions(batch_size=7), 7)):
        (x,) = inputs = options.values(folder, meta=meta)
        assert (x.shape, x.is_meta, options.samples(inputs)) == ((samples, 8), meta, samples)
    assert ExampleOptions(input_shape="9").values(folder).shape == (2, 9)


@pytest.mark.parametrize(
    "words, fault",
    [
        ({"input_dtype": "int64"}, "--input-dtype int64: the folder .* says of which sizes and types"),
        ({"batch_size": 0}, "--batch-size 0 is not positive"),
        (
            {"inputs": ["x=2x8"], "batch_size": 4, "input_dtype": "int64"},
            "--input-dtype int64, --batch-size 4: --input",
        ),
        ({"inputs": ["x=2x8"], "input_shape": "8"}, "--input and --input-shape are both there"),
    ],
)
def test_what_is_said_already_is_refused(folder, words, fault):
    with pytest.raises(ExampleError, match=fault):
        ExampleOptions(**words).values(folder)


def test_a_type_without_a_shape_is_refused():
    with pytest.raises(ExampleError, match="--input-dtype int64 is of an input whose shape nobody knows"):
        ExampleOptions(input_dtype="int64").values("nets.py:deep")
