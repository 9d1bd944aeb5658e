"""A training run -> its rows and scores, its files, and what a checkpoint of it holds.

The files, in reading order:

    history       what a run measures -> rows, as JSON lines and as text
    score         a network and a data set -> loss and error on the test part
    progress      durations of steps -> where a run stands: samples a second, time left
    folder        a folder -> the files of one run, each whole or not there
    state         a run between two steps -> the tensors and plain data of a checkpoint, and back
    curves        a history -> a picture; imported on its own, since matplotlib is slow to import
    tensorboard   rows -> scalars that TensorBoard shows
"""

from .folder import RunFolder
from .history import EpochRow, History, Row, StepRow
from .progress import Progress
from .score import Score, evaluate
from .state import RunState

__all__ = ["EpochRow", "History", "Progress", "Row", "RunFolder", "RunState", "Score", "StepRow", "evaluate"]
