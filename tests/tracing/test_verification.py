"""A graph that is not the model is refused, and every refusal names fact, place and remedy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pararealize.errors import CaptureError, ExampleError, ModelError
from pararealize.tracing.front_end import capture
from tests.models import Auxiliary, Branching, MaskedTransformer, SmallResNet


def test_refusals_name_fact_place_and_remedy() -> None:
    with pytest.raises(
        CaptureError, match=r"Branching.*models\.py:\d+ `if x.sum\(\) > 0:`.*values of a tensor.*a module of its own"
    ):
        capture(Branching(), torch.randn(2, 4))
    with pytest.raises(CaptureError, match=r"depends on train\(\)/eval\(\).*aux_logits=False"):
        capture(Auxiliary(), torch.randn(2, 4))
    with pytest.raises(ExampleError, match=r"SmallResNet does not accept.*x \(2, 4\) float32"):
        capture(SmallResNet(), torch.randn(2, 4))
    with pytest.raises(ExampleError, match=r"do not fit SmallResNet.forward\(x.*\).*missing a required argument: 'x'"):
        capture(SmallResNet(), {"y": torch.randn(2, 4)})
    with pytest.raises(ExampleError, match=r"first layer is Embedding; pass example_inputs"):
        capture(MaskedTransformer())
    with pytest.raises(ExampleError, match="is a object; only tensors and plain values"):
        capture(SmallResNet(), ([torch.randn(2, 3, 8, 8), object()],))
    with pytest.raises(ModelError, match="has no parameters"):
        capture(nn.ReLU(), torch.randn(2, 4))
    with pytest.raises(CaptureError, match="leaf_modules names 'layer9'"):
        capture(SmallResNet(), torch.randn(2, 3, 8, 8), leaf_modules=["layer9"])
