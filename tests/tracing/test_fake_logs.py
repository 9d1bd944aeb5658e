"""A recording says nothing of its own on stderr, and other threads' fake tensors log as ever."""

from __future__ import annotations

import logging
import threading

import pytest
import torch
from torch import nn

from pararealize import capture
from pararealize.errors import ExampleError
from pararealize.tracing.fake_logs import without_fake_logs

LOGGER = logging.getLogger("torch._subclasses.fake_tensor")


def test_inputs_that_the_model_refuses_leave_stderr_empty(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExampleError, match="does not accept"):
        capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 5))
    assert capfd.readouterr().err == ""


def test_it_is_for_the_thread_that_records(caplog: pytest.LogCaptureFixture) -> None:
    LOGGER.addHandler(caplog.handler)
    try:
        with without_fake_logs():
            with without_fake_logs():
                LOGGER.error("mine")
            LOGGER.error("mine, too")
            thread = threading.Thread(target=LOGGER.error, args=("another's",))
            thread.start()
            thread.join()
        LOGGER.error("afterwards")
    finally:
        LOGGER.removeHandler(caplog.handler)
    assert {record.message for record in caplog.records} == {"another's", "afterwards"}
