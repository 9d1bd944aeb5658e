"""What several tests of run folders begin with."""

import pytest

from pararealize.train.run.intact_checkpoint import METRICS
from tests.train.run.test_run_folder import begun, save


@pytest.fixture
def three(tmp_path):
    """A run with three checkpoints, a line before each."""
    folder, _ = begun(tmp_path)
    for step in (1, 2, 3):
        folder.append(METRICS, [str(step)])
        save(folder, step)
    return folder
