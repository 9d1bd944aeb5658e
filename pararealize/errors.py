"""The errors a user can meet: each says the fact, the values and the remedy.

Every error of this package is a :class:`PararealizeError`, so one ``except`` clause catches all of them; ``assert`` is
kept for our own bugs.
"""

from typing import Any

from .control_characters import visible

__all__ = [
    "AgreedError",
    "CalibrationError",
    "CaptureError",
    "CheckpointError",
    "CoarseError",
    "CutError",
    "DataError",
    "DeviceError",
    "DisagreementError",
    "DistributedError",
    "ExampleError",
    "FieldError",
    "GuardError",
    "ModeWarning",
    "ModelError",
    "MultigridError",
    "OriginalWarning",
    "OutputError",
    "PararealizeError",
    "PlanError",
    "ProfileError",
    "RankError",
    "RecipeError",
    "RecordingWarning",
    "RefusedCallError",
    "RestackError",
    "RestackWarning",
    "SourceError",
    "TableauError",
    "TrainingError",
]


LONGEST = 8000  # characters of a message; a longer one loses its middle, and keeps the fact and the remedy


class PararealizeError(Exception):
    """The base of every error that this package raises on purpose.

    What comes out of a file stands in the message as it may go to a terminal or a log: control characters as escapes.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*(_message(arg) if isinstance(arg, str) else arg for arg in args))


class ModelError(PararealizeError, ValueError):
    """The model itself cannot be taken: unknown name, no parameters, a reserved submodule name, cannot be copied."""


class ExampleError(PararealizeError, ValueError):
    """Example inputs are missing where they cannot be inferred, or the model does not accept them."""


class CaptureError(PararealizeError, RuntimeError):
    """The forward pass cannot be captured as one graph that is right in both modes and for other batch sizes."""


class CutError(PararealizeError, ValueError):
    """The network has too few points at which exactly one activation is alive, or a requested cut is not one."""


class DataError(PararealizeError, ValueError):
    """A data set is unknown, not on disk, damaged, or cannot be had as it was asked for."""


class FieldError(PararealizeError, NotImplementedError):
    """An operation without a receptive-field rule stands on a path that needs one."""


class GuardError(PararealizeError, ValueError):
    """Inputs break a condition under which the network was recorded: a size, a number of dimensions, an element type.

    Attributes:
        guards: the conditions that are broken, with the lines of the model that asked for them.
    """

    def __init__(self, message: str, guards: tuple[str, ...] = ()) -> None:
        super().__init__(message, guards)
        self.guards = guards

    def __str__(self) -> str:
        return str(self.args[0])  # what else stands in ``args`` is there for copies, which pickle makes of them


class PlanError(PararealizeError, ValueError):
    """A plan cannot be made, read or applied: n out of range, another version, another model."""


class ProfileError(PararealizeError, ValueError):
    """A device profile is unknown, of another version, contradicts itself, or says nothing of an element type."""


class DeviceError(PararealizeError, ValueError):
    """A device is unknown or not there."""


class DistributedError(PararealizeError, RuntimeError):
    """A network cannot be distributed so, ranks disagree, or one of them did not answer in time."""


class SourceError(PararealizeError, ValueError):
    """Adapters cannot read from the requested source, such as token ids with ``source="input"``."""


class CoarseError(PararealizeError, ValueError):
    """A coarse kind is unknown, or a coarse block maps to another shape than its interface has."""


class CalibrationError(PararealizeError, ValueError):
    """A network cannot be calibrated: activations are not finite, labels do not fit, an option is out of range."""


class CheckpointError(PararealizeError, ValueError):
    """A checkpoint does not fit the module that is to load it."""


class TableauError(PararealizeError, ValueError):
    """A Runge-Kutta table is unknown, implicit, does not sum, or has not the order that it claims."""


class RestackError(PararealizeError, ValueError):
    """A network has no chain of residual blocks that a scheme could rewire, or the scheme would make it blow up."""


class RestackWarning(UserWarning):
    """Restacking gives another function than the network had, or one that may not be trainable."""


class OriginalWarning(UserWarning):
    """The weights that are given as the original's are those of a network that may have been trained since."""


class ModeWarning(UserWarning):
    """A model decides by itself which of its modules train, and what it was converted into would not know."""


class RecordingWarning(UserWarning):
    """A converted network was recorded anew, for inputs that its recordings do not hold for; it takes a while."""


class MultigridError(PararealizeError, ValueError):
    """A network has no chain of residual blocks for multigrid, or levels, coarsening or iterations do not fit it."""


class RecipeError(PararealizeError, ValueError):
    """A value of a training recipe is unknown or out of range."""


class TrainingError(PararealizeError, RuntimeError):
    """Training cannot go on: a loss or a gradient is not finite any more.

    Attributes:
        step: the number of the step, from 1.
        where: the part of the network in which it began, or what else is at fault.
    """

    def __init__(self, message: str, step: int, where: str) -> None:
        super().__init__(message, step, where)
        self.step, self.where = step, where

    def __str__(self) -> str:
        return str(self.args[0])  # what else stands in ``args`` is there for copies, which pickle makes of them


class OutputError(PararealizeError, OSError):
    """An output folder exists already or cannot be written."""


class AgreedError(DistributedError):
    """What all ranks of a network raise together before the first message: they may go on."""


class DisagreementError(DistributedError):
    """Ranks that hold one network, or copies of it, do not do the same; the message has the value of each of them.

    Some of them had begun to send: the run is over, as after a :class:`RankError`.
    """


class RefusedCallError(GuardError, ExampleError, AgreedError):
    """A call that the ranks of a network refuse together, for its inputs: by their sizes, their types or their form."""


class RankError(DistributedError):
    """A rank failed, died or hung; the message says which, at what, and why.

    Attributes:
        rank: the one at fault, as the group that was watched counts.
    """

    def __init__(self, message: str, rank: int) -> None:
        super().__init__(message, rank)
        self.rank = rank

    def __str__(self) -> str:
        return str(self.args[0])  # what else stands in ``args`` is there for copies, which pickle makes of them


def _message(text: str) -> str:
    text = visible(text)
    if len(text) <= LONGEST:
        return text
    begin, end = text[: LONGEST * 2 // 3], text[-LONGEST // 4 :]
    return f"{begin} … ({len(text) - len(begin) - len(end):,} characters more) … {end}"
