"""From a trained network to a parareal network of nearly the same function: adapters and coarse blocks are fitted.

In reading order:

    fitting           PararealModule, batches -> Calibration (``calibrate`` composes the files here)
    interfaces        a batch -> what crosses each interface, in sequence and in parallel segments
    least_squares     a linear layer, its inputs and targets -> its weights by ridge regression
    distillation      any other module, its inputs and targets -> its weights by a short training
    interface_errors  values at the interfaces -> how far they are from those of the network in sequence
    report            Calibration: the errors before and after, part by part, as text and JSON
    fine_tuning       a calibrated network, a data set -> all of it trained for some steps
    figure            a picture of a Calibration
"""

from .fine_tuning import fine_tune
from .fitting import calibrate
from .interface_errors import measure_errors
from .interfaces import InterfaceRecord, Interfaces, InterfaceValues
from .report import Calibration, Errors, Fit

__all__ = [
    "Calibration",
    "Errors",
    "Fit",
    "InterfaceRecord",
    "InterfaceValues",
    "Interfaces",
    "calibrate",
    "fine_tune",
    "measure_errors",
]
