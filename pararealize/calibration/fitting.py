"""PararealModule of a trained network, batches -> Calibration: what was added is fitted, and errors are measured.

Window after window, each on what those before it give:

adapters        C^j to each segment's true input             least squares, where linear     least_squares.py
coarse blocks   F^1, F^2, … to the true propagation of the   least squares, where linear;    distillation.py
                residuals that arrive                        else a short distillation
corrections     K^j to what the window's end lacks           least squares                   window_corrections.py,
                                                                                             window_folds.py
statistics      of batch norms, to what arrives              averages                        norm_statistics.py
errors          at every interface, before and after                                         interface_errors.py

The original's weights stay as they are, bit for bit, unless maps are folded into them, and so do its running statistics
unless they are renewed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch

from pararealize.argument_types import typed_arguments
from pararealize.data.dataset import Dataset
from pararealize.errors import CalibrationError, ModelError
from pararealize.network.module import PararealModule
from pararealize.random_state import preserve_state
from pararealize.restore import ordinary_mode
from pararealize.train.run.score import eval_mode

from .batch import Batches
from .held_out import HeldOut
from .interface_errors import measure_errors
from .interfaces import InterfaceRecord, Interfaces
from .known_original import lost_original, noting_statistics
from .masks import AUTO, MaskChoice
from .output_kind import Outputs, find_output_kind
from .report import Calibration
from .window_fitting import FitSettings, WindowFitting

__all__ = ["calibrate", "calibration_mode", "check_network", "read_dataset"]

KEEP = 1 << 30


@typed_arguments(CalibrationError, "net")
def calibrate(
    net: PararealModule,
    batches: Batches | Dataset,
    *,
    test: Batches | None = None,
    steps: int = 200,
    lr: float = 1e-2,
    ridge: float = 1e-4,
    keep: int = KEEP,
    seed: int = 0,
    mask: MaskChoice = AUTO,
    outputs: Outputs = "auto",
    renew_statistics: bool | None = None,
    report: Callable[[str], None] | None = None,
) -> Calibration:
    r"""Fit what a parareal network has besides the trained network that it was made from: window after window.

    With :math:`u_j` the output of segment j when all segments run in sequence, adapters first, each on its own,

    .. math:: C^j = \operatorname{argmin} \sum \|C^j(x) - u_{j-1}\|^2,

    then coarse blocks from the first interface on, each with those before it as they are now,

    .. math:: F^j = \operatorname{argmin} \sum \|F^j(z_j - x_{j+1}) - (u_{j+1} - y_{j+1})\|^2 ,

    and the window's output corrections, where it has any, all at once, with :math:`w` its end without them,

    .. math:: K^1, \dots, K^n = \operatorname{argmin} \sum \|\textstyle\sum_j K^j(x_j, y_j) - (u_n - w)\|^2 .

    The next window is fitted on what this one really gives, :math:`w` with its corrections, to the same true values.

    Modules that are one linear layer are solved for in closed form, by ridge regression in double precision. Others
    are trained with Adam for ``steps`` batches, and the last layer of a residual unit is solved for before and after.
    Everything runs in eval mode. The batch norms of coarse blocks normalise by the batch while they are distilled;
    then their running statistics are set to the averages over all batches. Penalty and rank of output corrections are
    those with the smallest error on samples that were held out: ``test``, or the last fifth of the batches without it.
    Corrections that make that error no smaller are left at nought. Those of ``coarse="folded"`` are written into the
    last layers of segments: these weights of ``net`` change then. Positions that a mask excludes are no rows of least
    squares, and count in no error.

    The report ends in a verdict: whether the network can be used at this error.

    Args:
        net: a converted network with the trained weights; changed where it is, on its own devices.
        batches: training inputs: a list, a loader, or a function that gives a new iterator. A batch is a tensor,
            ``(inputs, labels)``, or a dict of keyword arguments (with ``"labels"``); labels only serve the report. Or a
            data set of :mod:`pararealize.data.catalogue`, whose test part is the default of ``test``.
        test: other batches to measure the errors on; ``batches`` when left out.
        steps: steps of Adam, for every coarse block that is not linear.
        lr: Adam's largest learning rate; the rate rises linearly and falls as a cosine.
        ridge: penalty of all least squares, relative to the mean squared feature.
        keep: bytes of activations to hold in memory. Where the data needs more, a pass over it runs the network again,
            and distillation sees as many of the first batches as fit.
        seed: fixes the order of batches, and a loader's own shuffling. The caller's random state stays as found.
        mask: which positions count: the name of an item of dict batches, or a function from a batch to a mask
            ``(batch, length)``, nonzero where a position counts; ``None`` for all. ``"auto"`` takes the item
            ``"attention_mask"`` where it has the shape of the first axes of what crosses the interfaces.
        outputs: ``"logits"`` where the outputs tell classes, of which the report then says how often they are the
            same; ``"values"`` where they do not. ``"auto"`` takes for classes what is behind a softmax, in a cross
            entropy or called ``logits`` in the model, and outputs whose largest number is at the label more often than
            chance has it.
        renew_statistics: measure the running statistics of the original's batch norms anew on what arrives at them, in
            every window and in the head, where that makes the error of the output on the samples held out smaller:
            these buffers of ``net`` change then. Left out: with several windows.
        report: called with a line of text as the work goes on.

    Returns:
        The errors at every interface, before and after.

    Raises:
        ModelError: ``net`` is no :class:`PararealModule`, or on the meta device.
        ExampleError: there is no batch, it does not fit the network, or batches can be read only once.
        CalibrationError: activations are not finite, labels do not fit the output, that is of integers or a loss alone,
            an option is out of range, or batches that do not fit into ``keep`` are others when they are read again.

    Example:
        >>> from pararealize import pararealize
        >>> from pararealize.data import digits
        >>> from pararealize.models import resnet20
        >>> data = digits(image_size=8)
        >>> net = pararealize(resnet20(), n=3, coarse="linear")
        >>> calibration = calibrate(net, data.batches, test=data.test_batches)
        >>> calibration.stage("after").output < calibration.stage("before").output
        True
    """
    check_network(net)
    batches, test, outputs = read_dataset(batches, test, outputs)
    settings = FitSettings(steps=steps, lr=lr, ridge=ridge, keep=keep, seed=seed)
    say = report or (lambda _: None)
    renews = len(net.plan.windows) > 1 if renew_statistics is None else renew_statistics
    with calibration_mode(net, seed):
        interfaces = Interfaces(net, mask)
        _check_original(interfaces)
        say("running the network in sequence")
        record = InterfaceRecord(interfaces, batches, keep=keep, seed=seed)
        room = record.room if record.complete else 0
        tested = None if test is None else InterfaceRecord(interfaces, test, keep=room, seed=seed)
        evidence = record.evidence if tested is None or record.evidence.count else tested.evidence
        held_out = HeldOut(record, tested)
        held_out.check_masks()
        first = record.in_memory[0]
        reads = interfaces.at(interfaces.last, first.true[interfaces.last]), *first.context["head"]
        kind = find_output_kind(net, record.output, outputs, evidence, reads)
        say("measuring the errors before")
        before = measure_errors(interfaces, tested or record, kind)
        fitting = WindowFitting(record, held_out, settings, kind, say)
        with noting_statistics(net, interfaces.statistics):
            fitted = [fitting.fit(window, renews=renews) for window in interfaces.windows]
            if renews:
                fitting.renew_head()
        say("measuring the errors after")
        after = measure_errors(interfaces, tested or record, kind)
    corrections = [one.correction for one in fitted if one.correction is not None]
    unread: tuple[str, ...] = ()
    if evidence.given and not kind.scores and outputs == "auto":
        unread = (f"the labels are not used: {kind.why}; pass outputs='logits' if the network tells these classes",)
    chosen = bool(corrections) or (renews and fitting.has_norms)
    return Calibration(
        model=net.plan.model,
        n=net.plan.n,
        windows=tuple(window.n for window in interfaces.windows),
        blocks=sum(row.blocks for window in interfaces.windows if not window.sequential for row in window.segments),
        coarse=net.plan.coarse,
        outputs="classes" if kind.scores else "values",
        why=kind.why,
        samples=record.samples,
        tested=(tested or record).samples,
        held_out=test is not None,
        accuracy=after.accuracy,
        fits=tuple(chain.from_iterable(one.fits for one in fitted)),
        stages=(before.errors("before"), after.errors("after")),
        corrections=tuple(corrections),
        held_out_part=str(fitting.held_out) if chosen else "",
        renewed=tuple(interfaces.statistics.renewed),
        warnings=(*unread, *fitting.warnings, *after.warnings),
    )


def read_dataset(
    batches: Batches | Dataset, test: Batches | None, outputs: Outputs
) -> tuple[Batches, Batches | None, Outputs]:
    """A data set as training and test batches, of which its classes say that the outputs are logits."""
    if not isinstance(batches, Dataset):
        return batches, test, outputs
    return batches.batches, batches.test_batches if test is None else test, "logits" if outputs == "auto" else outputs


def check_network(net: object) -> None:
    """Raise unless it is a converted network with weights that may be written."""
    if not isinstance(net, PararealModule):
        raise ModelError(f"calibration takes what pararealize(...) gives, and this is a {type(net).__name__}")
    if any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers())):
        raise ModelError("the network is on the meta device, where nothing runs; convert the model with its weights")
    named = (*net.named_parameters(), *net.named_buffers())
    if inference := next((name for name, tensor in named if tensor.is_inference()), None):
        raise ModelError(
            f"{inference} was made within torch.inference_mode, where torch lets nothing be written or trained later; "
            "calibrate copy.deepcopy(net), made outside of it"
        )


@contextmanager
def calibration_mode(net: PararealModule, seed: int) -> Iterator[None]:
    """Eval mode and seeded random numbers, outside the caller's autocast and no_grad; all is put back on leaving."""
    devices = (parameter.device for parameter in net.parameters())
    with ordinary_mode(), preserve_state(devices), eval_mode(net):
        torch.manual_seed(seed)
        yield


def _check_original(interfaces: Interfaces) -> None:
    """Refuse a network that, run in sequence, is the original no longer."""
    if fact := lost_original(interfaces.net, interfaces.statistics):
        raise CalibrationError(
            f"{fact}; give it the original's state: net.load_original_state_dict(model.state_dict()), or go on with "
            "fine_tune(..., teacher=model)"
        )
