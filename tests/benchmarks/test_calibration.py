"""The table of the calibration benchmark, from rows by hand."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no installed package

from benchmarks.calibration import __main__ as calibration


def row(seed: int, accuracy: float, tuned: float) -> dict:
    kind = {
        "share": 0.25, "speedup": 2.0, "calibrate_seconds": 5.0, "fine_tune_seconds": 9.0, "fine_tune_steps": 48,
        "stages": {"before": 0.1, "after": 0.9, "fine-tuned": tuned},
    }  # fmt: skip
    return {"network": "net", "seed": seed, "steps": 480, "train_seconds": 50.0, "accuracy": accuracy,
            "kinds": {"block": kind}}  # fmt: skip


def test_the_mean_over_seeds_decides() -> None:
    rows = {"net, seed 0": row(0, 0.98, 0.96), "net, seed 1": row(1, 0.96, 0.962), "net, seed 2": {"failed": "crash"}}
    line = (
        "| net | 2 | 97.0 ± 1.4 | block | 25 % | 2.00 | 10.0 ± 0.0 | 90.0 ± 0.0 | 96.1 ± 0.1 | 0.9 ✓ | 10 % | 48 of 480"
    )
    assert line in calibration.markdown(rows)
    rows["net, seed 1"] = row(1, 0.96, 0.95)
    assert "1.5 |" in calibration.markdown(rows)
    assert "1.5 ✓" not in calibration.markdown(rows)


def test_the_picture_is_written(tmp_path: Path) -> None:
    calibration.draw({"net, seed 0": row(0, 0.98, 0.96)}, tmp_path / "lost.svg")
    assert (tmp_path / "lost.svg").stat().st_size > 5000
