"""A network, a data set and a recipe -> the same network, trained.

``fit(net, data, Recipe(epochs=20), folder="run")`` trains any module from inputs to logits, in one process or, with a
stage, over many; ``build("parareal", model, Options(n=3))`` makes such a module by the name of a method. The files, in
reading order:

    recipe      plain data -> optimiser, learning rates, loss, initial weights
    loop        a network, data and a recipe -> the trained network, its history, the files of the run
    structure   a network -> what it is apart from its weights: modules, settings, code, what is trained
    request     what a run is asked for -> plain data, with which a resumed run has to agree
    update      a batch -> one step of the optimiser
    steps       a network -> forward and backward of one step: plain, monitored, one-shot
    captured_step  a network -> forward, loss and backward of one step as CUDA graphs
    nonfinite   a loss or gradients that are not finite -> the part of the network in which that began
    methods     a method's name and a model -> the network to train, and its step

What a run writes and reports is in ``run``.
"""

from .captured_step import CapturedStep
from .loop import fit
from .methods import METHODS, Built, Options, build
from .nonfinite import Fault
from .recipe import Recipe, he_weights
from .steps import MonitoredStep, TrainingStep

__all__ = [
    "METHODS",
    "Built",
    "CapturedStep",
    "Fault",
    "MonitoredStep",
    "Options",
    "Recipe",
    "TrainingStep",
    "build",
    "fit",
    "he_weights",
]
