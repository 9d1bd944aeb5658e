"""What does not belong to a network is refused before anything is written."""

import pytest
from torch import nn

from pararealize.errors import CalibrationError, ModelError
from pararealize.saving.save_arguments import check_calibration, check_original


def test_an_original_has_the_names_and_shapes_of_the_network():
    state = nn.Linear(2, 3).state_dict()
    check_original(None, state)
    check_original(nn.Linear(2, 3), state)
    for wrong in (nn.Linear(2, 4), nn.Linear(2, 3, bias=False), nn.Sequential(nn.Linear(2, 3))):
        with pytest.raises(ModelError, match=r"original= is not the model .*tensors differ \("):
            check_original(wrong, state)


def test_a_report_has_json():
    check_calibration(None)
    with pytest.raises(CalibrationError, match="calibration is a str; pass what calibrate"):
        check_calibration("foo")
