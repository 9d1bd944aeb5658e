"""A comparison as text and as JSON."""

import dataclasses
import json
import math

from pararealize.comparison import Comparison, Latency, Quality

WHOLE = Comparison(
    model="Net", n=3, samples=360, relative_error=0.25, cosine=0.97, same_class=0.9,
    original=Quality(accuracy=0.95, loss=0.1), parareal=Quality(accuracy=0.9, loss=0.2),
    latencies=(Latency(batch=1, original=0.01, parareal=0.005, rounds=9),),
    predicted_speedup=2.5, device="cpu", threads=1,
)  # fmt: skip


def test_text():
    text = str(WHOLE)
    for part in ("360 samples", "95.00%", "90.00%", "0.25", "0.9700", "batch 1", "2.00×", "9 calls", "2.50×", "n = 3"):
        assert part in text
    assert "zero" not in text
    bare = dataclasses.replace(WHOLE, original=None, parareal=None, same_class=None, latencies=(), relative_error=1.2)
    assert "accuracy" not in str(bare)
    assert "cosine" not in str(dataclasses.replace(WHOLE, cosine=math.nan))
    assert "no better than answering zero" in str(bare)


def test_json():
    values = json.loads(WHOLE.to_json())
    assert values["latencies"] == [{"batch": 1, "original": 0.01, "parareal": 0.005, "rounds": 9, "ratio": 2.0}]
    assert values["original"] == {"accuracy": 0.95, "loss": 0.1}
    assert json.loads(dataclasses.replace(WHOLE, relative_error=math.inf).to_json())["relative_error"] is None
