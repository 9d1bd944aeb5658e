"""Words of the command line, and what they stand for."""

import pytest
import torch

from pararealize.errors import CoarseError, DeviceError, ExampleError, PlanError
from pararealize_cli import arguments


@pytest.mark.parametrize("text", ["3,32,32", "3x32x32", "3×32×32", " 3, 32, 32 "])
def test_shape(text):
    assert arguments.shape(text) == (3, 32, 32)


@pytest.mark.parametrize("text", ["", "3,,32", "3,-1", "3,0", "three", "3.5", "8,²", "9" * 19, "9" * 5000])
def test_bad_shape(text):
    with pytest.raises(ExampleError, match="write positive sizes"):
        arguments.shape(text)


def test_example():
    assert arguments.example("resnet20", None, "float32", 4).shape == (4, 3, 32, 32)
    assert arguments.example("torch.nn:Flatten", None, "float32", 4) is None
    tokens = arguments.example("torch.nn:Flatten", "128", "int64", 2)
    assert tokens.dtype is torch.int64
    assert tokens.eq(0).all()
    assert arguments.example("resnet20", None, "float32", 4, meta=True).is_meta
    with pytest.raises(ExampleError, match="--input-dtype 'number'"):
        arguments.example("resnet20", None, "number", 4)
    with pytest.raises(ExampleError, match="--batch-size 0"):
        arguments.example("resnet20", None, "float32", 0)


def test_numbers():
    assert arguments.numbers("2, 4,", "n") == (2, 4)
    for text in ("", "2,²", "-1", "9" * 5000):
        with pytest.raises(PlanError, match="is no list of numbers"):
            arguments.numbers(text, "n")
    for text in ("x=²", "x=" + "9" * 5000):
        with pytest.raises(ExampleError, match="is no input"):
            arguments.inputs([text])
    assert arguments.windows("9" * 5000) == ["9" * 5000]


def test_cuts():
    assert arguments.cuts("cost") == "cost"
    assert arguments.cuts("paper") == "paper"
    assert arguments.cuts("layer2.0, layer3.0") == ["layer2.0", "layer3.0"]
    assert arguments.cuts("layer2.0") == ["layer2.0"]


def test_devices():
    assert arguments.devices(None) is None
    assert arguments.devices("cuda:0, cpu") == ["cuda:0", "cpu"]
    with pytest.raises(DeviceError, match="names no device"):
        arguments.devices(",")


def test_coarse():
    assert arguments.coarse("block") == "block"
    assert callable(arguments.coarse("torch.nn:Identity"))
    assert arguments.coarse("low-rank:16") == "low-rank:16"
    assert arguments.coarse("folded:16") == "folded:16"
    with pytest.raises(CoarseError, match='only "low-rank" and "folded" have a rank'):
        arguments.coarse("dense:16")
    with pytest.raises(CoarseError, match="cannot be called"):
        arguments.coarse("math:pi")


def test_leaf_modules():
    assert arguments.leaf_modules(["torch.nn:Flatten"]) == (torch.nn.Flatten,)
    assert arguments.leaf_modules(None) == ()
    with pytest.raises(ExampleError, match="not a class"):
        arguments.leaf_modules(["math:pi"])
