"""A training run -> its rows and scores, its files, and what a checkpoint of it holds.

The files, in reading order:

    history            what a run measures -> rows, as JSON lines and as text
    score              a network and a data set -> loss and error on the test part
    progress           durations of steps -> where a run stands: samples a second, time left
    plain_state        what of a run's state is no tensor, as a file holds it
    checkpoint         a run between two steps -> the tensors and plain data that a checkpoint holds, and back
    lock               a file -> the right to write beside it, which one process has at a time
    line_file          a path, lines -> a file that has them at its end, and what it has to be
    intact_checkpoint  a folder -> the checkpoint to go on from
    run_folder         a folder -> the files of one run, each whole or not there, and where a killed run goes on
    saved_network      a trained network -> the folder in a run's, from which it loads anywhere
    curves             a history -> a picture; imported on its own, since matplotlib is slow to import
    tensorboard        rows -> scalars that TensorBoard shows
"""

from .checkpoint import RunState
from .history import EpochRow, History, Row, StepRow
from .progress import Progress
from .run_folder import RunFolder
from .score import Score, evaluate

__all__ = ["EpochRow", "History", "Progress", "Row", "RunFolder", "RunState", "Score", "StepRow", "evaluate"]
