"""A message's bytes -> its seconds: latency and bandwidth of what lies between two ranks."""

import dataclasses
import math
from typing import Any

from pararealize.argument_types import is_allowed
from pararealize.errors import PlanError

__all__ = ["Transfer", "transfer_fault"]


def transfer_fault(latency: Any, bandwidth: Any) -> str:
    """What is wrong with these numbers, where something is."""
    if not is_allowed(latency, float) or not is_allowed(bandwidth, float):
        return f"latency is {latency!r} and bandwidth {bandwidth!r}; they are no numbers"
    if latency >= 0 and math.isfinite(latency) and bandwidth > 0:
        return ""
    return f"latency is {latency:g} s and bandwidth {bandwidth:g} bytes/s; they cannot be"


@dataclasses.dataclass(frozen=True, slots=True)
class Transfer:
    """How long a message takes: ``latency + bytes / bandwidth``.

    Attributes:
        latency: seconds of the smallest message. The default supposes two GPUs of one machine that talk over PCIe; it
            is a supposition and was not measured.
        bandwidth: bytes a second; likewise, about what PCIe 3.0 x16 gives. NVLink has some 10 to 40 times as much, and
            should be said: ``Transfer(latency=1e-5, bandwidth=2e11)``.

    Raises:
        PlanError: a negative or infinite latency, or no bandwidth.

    Example:
        >>> Transfer(latency=1e-5, bandwidth=1e9).seconds(10_000)
        2e-05
    """

    latency: float = 20e-6
    bandwidth: float = 12e9

    def __post_init__(self) -> None:
        if fault := transfer_fault(self.latency, self.bandwidth):
            raise PlanError(f"{fault}: pass seconds from 0 on, and bytes a second above 0")

    def seconds(self, size: float) -> float:
        """How long a message of so many bytes takes."""
        return self.latency + size / self.bandwidth

    def __str__(self) -> str:
        if not math.isinf(self.bandwidth):
            return f"latency {self.latency:g} s, bandwidth {self.bandwidth:g} bytes/s"
        return f"latency {self.latency:g} s, unlimited bandwidth" if self.latency else "free messages"
