"""Messages between the ranks of one network: who sends in which order, in which format, over which process group.

In reading order::

    message_order     values by name -> messages that both sides expect in one order, and why no wait is for ever
    formats           a value -> what its receiver has to allocate
    point_to_point    tensors and objects -> the process groups, every wait bounded
"""

from .message_order import StepMessages
from .point_to_point import PointToPoint

__all__ = ["PointToPoint", "StepMessages"]
