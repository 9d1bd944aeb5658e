"""From a trained network to a parareal network of nearly the same function: adapters and coarse blocks are fitted.

In reading order:

    fitting           PararealModule, batches -> Calibration (``calibrate`` composes the files here)
    batch             a batch -> its inputs and labels
    masks             a batch -> which positions count
    interfaces        a batch -> what crosses each interface, in sequence and in parallel segments
    held_out          batches -> the samples to fit to, and those that choose between fits
    window_fitting    a window -> its parts, fitted to what the network in sequence has there
    least_squares     a linear layer, its inputs and targets -> its weights by ridge regression
    distillation      any other module, its inputs and targets -> its weights by a short training
    sums              samples, values -> sums over the rows that maps are fitted to, and over those held out
    window_corrections  a window -> its output corrections, by the closed forms of channel_maps
    window_folds      a window -> maps of its corrections, folded into the last layers of its segments
    folded_layers     a network -> those layers, with their maps and without them
    known_original    a network -> why its original is not known any more; notes of what changed
    channel_maps      rows of features and targets -> linear maps: full, of low rank, a factor a channel
    norm_statistics   inputs of a part -> running statistics of its batch norms, renewed
    output_kind       outputs, labels -> whether an output tells classes
    interface_errors  values at the interfaces -> how far they are from those of the network in sequence
    rows              the rows of a report: fits, errors, choices
    verdict           errors -> whether the network can be used, and which cut would do where it cannot
    report            Calibration: the errors before and after, part by part, as text and JSON
    figure            a picture of a Calibration

    fine_tuning       a network, batches -> all or some of it trained to give what the original gives (``fine_tune``)
    teacher           a network -> its original beside it, or another model
    tuning_data       batches -> those to train on, and those held out
    losses            outputs of student and teacher -> how far they are apart, with gradients
    trained_parameters  a choice -> the parameters that are trained, maps of low rank among them
    graph_run         a batch -> output and windows' ends, with gradients
    tuning_run        steps, and the best weights on the batches held out
    tuning_errors     errors before and after a fine-tuning, against its teacher
    tuning_report     FineTuning: losses, errors before and after, as text and JSON
"""

from .fine_tuning import fine_tune
from .fitting import calibrate
from .interface_errors import measure_errors
from .interfaces import InterfaceRecord, Interfaces, InterfaceValues
from .report import Calibration
from .rows import CorrectionChoice, Errors, Fit
from .tuning_report import FineTuning, TuningRow
from .verdict import Verdict

__all__ = [
    "Calibration",
    "CorrectionChoice",
    "Errors",
    "FineTuning",
    "Fit",
    "InterfaceRecord",
    "InterfaceValues",
    "Interfaces",
    "TuningRow",
    "Verdict",
    "calibrate",
    "fine_tune",
    "measure_errors",
]
