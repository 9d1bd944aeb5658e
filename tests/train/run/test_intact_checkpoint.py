"""The checkpoint to go on from: the newest; where it is damaged, one before it, if that is asked for."""

import pytest

from pararealize.errors import CheckpointError
from tests.train.run.test_run_folder import begun, save


def damage(checkpoint):
    (checkpoint / "state.json").write_text("{}")


def test_a_damaged_checkpoint_is_passed_over_when_asked_for(tmp_path, three):
    one, two, last = three.checkpoints()
    damage(last)
    damage(two)
    told = r"03' is damaged: state.json .*; an earlier checkpoint, step-00000001, is intact: .* with resume_from="
    with pytest.raises(CheckpointError, match=told):
        begun(tmp_path, resume=True)
    assert begun(tmp_path, resume=True, previous=True)[1] == one
    names = ["damaged-step-00000002", "damaged-step-00000003", "step-00000001"]
    assert sorted(path.name for path in one.parent.iterdir()) == names
    save(three, 2)
    assert begun(tmp_path, resume=True, previous=True)[1] == two  # the newest, which is intact
    damage(one)
    damage(two)
    with pytest.raises(CheckpointError, match=r"damaged: .*; no earlier checkpoint in .* is intact; .*--force"):
        begun(tmp_path, resume=True, previous=True)
