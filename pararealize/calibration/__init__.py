"""From a trained network to a parareal network of nearly the same function: adapters and coarse blocks are fitted.

In reading order:

    fitting           PararealModule, batches -> Calibration (``calibrate`` composes the files here)
    batch             a batch -> its inputs, labels and mask
    interfaces        a batch -> what crosses each interface, in sequence and in parallel segments
    held_out          batches -> the samples to fit to, and those that choose between fits
    window_fitting    a window -> its parts, fitted to what the network in sequence has there
    least_squares     a linear layer, its inputs and targets -> its weights by ridge regression
    distillation      any other module, its inputs and targets -> its weights by a short training
    window_corrections  a window -> its output corrections, by the closed forms of channel_maps
    channel_maps      rows of features and targets -> linear maps: full, of low rank, a factor a channel
    norm_statistics   inputs of a part -> running statistics of its batch norms, renewed
    interface_errors  values at the interfaces -> how far they are from those of the network in sequence
    rows              the rows of a report: fits, errors, choices
    report            Calibration: the errors before and after, part by part, as text and JSON
    fine_tuning       a calibrated network, a data set -> all of it trained for some steps
    figure            a picture of a Calibration
"""

from .fine_tuning import fine_tune
from .fitting import calibrate
from .interface_errors import measure_errors
from .interfaces import InterfaceRecord, Interfaces, InterfaceValues
from .report import Calibration
from .rows import CorrectionChoice, Errors, Fit

__all__ = [
    "Calibration",
    "CorrectionChoice",
    "Errors",
    "Fit",
    "InterfaceRecord",
    "InterfaceValues",
    "Interfaces",
    "calibrate",
    "fine_tune",
    "measure_errors",
]
