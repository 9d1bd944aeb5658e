"""A converted network, batches, K -> the network after K steps of distillation, and a FineTuning that says how it went.

teacher             the original beside it, or another model                 teacher.py
data                batches to train on, and others held out                 tuning_data.py
loss                of logits, of vectors, of values, or a caller's own      losses.py
trained parameters  everything, what was added, maps of low rank, by name    trained_parameters.py
steps               and the best of them on the batches held out             tuning_run.py
errors              before and after, against the teacher                    tuning_errors.py
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from pararealize.argument_types import typed_arguments
from pararealize.data.dataset import Dataset
from pararealize.errors import CalibrationError, ModelError, RecipeError, TrainingError
from pararealize.network.module import PararealModule
from pararealize.restacking.batchnorm import running_norms
from pararealize.train.recipe import Recipe

from .batch import Batches, labels_of
from .fitting import calibration_mode, check_network, read_dataset
from .graph_run import GraphRun
from .interface_errors import ErrorSums
from .known_original import noting_fine_tuning
from .losses import LossFunction, LossName, OutputLoss, choose_loss
from .masks import AUTO, MaskChoice
from .output_kind import LabelEvidence, OutputKind, Outputs, find_output_kind
from .report import Calibration
from .teacher import Teacher
from .trained_parameters import Choice, TrainedParameters
from .tuning_data import TuningData
from .tuning_errors import errors_of, measure_tuning, with_stage
from .tuning_report import FineTuning
from .tuning_run import TuningJob, TuningRun, trained_norms

__all__ = ["Norms", "fine_tune"]

Norms = Literal["keep", "train"]

KEEP = 1 << 30  # bytes of batches that are kept
LR = 1e-3
LR_ORIGINAL = 1e-4  # where weights of the original move, which are good already
WARMUP_PART = 10  # the rate rises for a tenth of the steps
LOOKS = 10  # at the batches held out
TRIAL_PART, TRIAL_LEAST = 4, 20  # a trial of a way to treat batch norms takes a quarter of the steps, 20 at least


@typed_arguments(CalibrationError, net=ModelError, teacher=ModelError, recipe=RecipeError)
def fine_tune(
    net: PararealModule,
    batches: Batches | Dataset,
    calibration: Calibration | None = None,
    *,
    steps: int,
    test: Batches | None = None,
    loss: LossName | LossFunction = "auto",
    temperature: float = 1.0,
    match: float = 0.0,
    train: Choice = "all",
    teacher: nn.Module | None = None,
    mask: MaskChoice = AUTO,
    norms: Norms | None = None,
    recipe: Recipe | None = None,
    lr: float | None = None,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> FineTuning:
    r"""Train a converted network for some steps to give what its original gives: no labels are needed.

    The original, its weights as they are when this begins, runs beside and is the teacher. With s the network's output
    and t the teacher's, a step lowers, at the positions that count,

    .. math:: \ell(s, t) + \mu \frac1M \sum_{m=1}^M \frac{\|w_m - u_m\|^2}{\|u_m\|^2},

    with :math:`\ell` one of

    ===================  ==================================================================================
    ``"kl"``             :math:`T^2 \operatorname{KL}(\sigma(t / T) \,\|\, \sigma(s / T))`, of logits
    ``"cross_entropy"``  half the cross-entropy with the labels, half that with :math:`\sigma(t)`
    ``"cosine"``         :math:`1 - \cos(s, t)`
    ``"mse"``            :math:`\|s - t\|^2 / \|t\|^2`
    a callable           what it gives for ``(student_output, teacher_output)``, or for these and the batch
    ===================  ==================================================================================

    and :math:`w_m`, :math:`u_m` the end of window m here and in the original. ``"auto"`` is ``"kl"`` where the outputs
    tell classes, see ``outputs`` of :func:`calibrate`; otherwise ``"cosine"`` where the teacher's vectors have all one
    length, and ``"mse"`` where not. An output that is no classification is never taken for one.

    The network is in eval mode, without dropout, but for its batch norms. Ten times on the way the loss on the batches
    held out is measured, and in the end the network has the best weights of these, those of the beginning included: it
    never ends worse than it began. A step costs one forward pass of the original more than a step of training.

    Args:
        net: the network; trained where it is, and its training flags and ``requires_grad`` left as found.
        batches: what :func:`calibrate` takes: a list, a loader, or a function that gives a new iterator, of tensors,
            ``(inputs, labels)`` or dicts; or a data set of :mod:`pararealize.data.catalogue`. Labels are optional.
        calibration: the report so far, of which the result has a copy with the stage ``"fine-tuned"``.
        steps: steps of training, each on a batch.
        test: other batches, to hold out; the last fifth of ``batches`` when left out. With a calibration that was
            measured on test batches these have to be passed.
        loss: of the outputs, see above.
        temperature: T.
        match: :math:`\mu`, the weight of the windows' ends; 0 leaves them out.
        train: what is trained: ``"all"``, ``"added"`` (adapters, coarse blocks, corrections: the original's weights
            stay, bit for bit), ``"lora"`` or ``"lora:16"`` (what was added, and maps of this rank beside the original's
            matrices, written into the weights), names of parameters or modules, or a function ``(name, parameter)``.
        teacher: another teacher: the model that was converted, or any with the same outputs, against which errors of
            the output are then. One that is called as the converted one and takes its weights, but gives something else
            for a batch held out, is another.
        mask: which positions count, as :func:`calibrate` has it.
        norms: ``"keep"`` the statistics that all batch norms have, or ``"train"``: normalise by the batch, statistics
            follow. Left out: both are tried for a quarter of the steps, and the better goes on.
        recipe: how to train, but for its epochs, and its ``lr`` where that is given here; AdamW when left out, with a
            rate that rises for a tenth of the steps and falls as a cosine, and gradients of norm 1 at most. With
            ``amp="bfloat16"`` the teacher takes its steps in that type too; errors are measured without.
        lr: the largest learning rate; 1e-3 when left out, 1e-4 where weights of the original are trained as they are
            and the network has no batch norms.
        seed: fixes the order of the batches, and factors of low rank.
        report: called with a line of text as the work goes on.

    Returns:
        The losses, the errors before and after, and a verdict; ``print`` shows them.

    Raises:
        CalibrationError: an option is out of range or does not fit the outputs; nothing is left to train; statistics
            were renewed or maps folded into layers, and nobody knows what these had before.
        ExampleError: there is no batch, it does not fit the network, or batches can be read only once.
        RecipeError: the recipe is of no use here.
        TrainingError: the loss is not finite any more; the network has its best weights so far.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network".

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pararealize import calibrate, pararealize
        >>> layers = [layer for _ in range(6) for layer in (nn.Linear(16, 16), nn.Tanh())]
        >>> model = nn.Sequential(*layers)  # imagine that it is trained
        >>> batches = [torch.randn(64, 16) for _ in range(10)]
        >>> net = pararealize(model, n=3, example_inputs=batches[0], coarse="block")
        >>> calibration = calibrate(net, batches, steps=20)
        >>> tuning = fine_tune(net, batches, calibration, steps=30)
        >>> tuning.loss, tuning.loss_after <= tuning.loss_before
        ('mse', True)
    """
    start = time.perf_counter()
    check_network(net)
    _check_options(steps=steps, temperature=temperature, match=match, lr=lr)
    said = _said(loss, calibration)
    _, test, outputs = read_dataset(batches, test, said)
    _check_test(calibration, test)
    say = report or (lambda _: None)
    with calibration_mode(net, seed):
        trained = TrainedParameters(net, train, seed=seed)
        recipe = _recipe(recipe, lr, steps, _default_lr(net, trained))
        renewed = () if calibration is None else calibration.renewed
        taught = Teacher(net, teacher, renewed=renewed, mask=mask)
        data = TuningData(batches, test, keep=KEEP, seed=seed)
        first = taught.settle(data.tests())
        _check_match(match, taught)
        kind = _kind(net, taught, data, outputs)
        if calibration is not None and outputs == said and loss not in ("kl", "cross_entropy"):
            kind = dataclasses.replace(kind, why=calibration.why)
        wanted = _loss(loss, kind, net, taught, first, temperature, recipe)
        say("measuring the errors before")
        before = measure_tuning(net, taught, data.tests, kind)
        job = TuningJob(
            net=net, teacher=taught, data=data, loss=wanted, match=match, mask=mask, steps=steps, recipe=recipe,
            every=max(1, steps // LOOKS), say=say,
        )  # fmt: skip
        with noting_fine_tuning(net):
            outcome = _train(job, trained, norms, lambda: TrainedParameters(net, train, seed=seed))
        say("measuring the errors after")
        after = measure_tuning(net, taught, data.tests, kind)
        if calibration is not None:
            against = taught.reference == "teacher" and taught.has_original  # the original, as the stages before are
            measured, on = after, data.tests if calibration.held_out else data.all
            if against or not calibration.held_out:
                measured = measure_tuning(net, taught, on, kind, original=against)
            calibration = with_stage(calibration, steps, measured, taught)
    return _report(job, outcome, before, after, calibration, time.perf_counter() - start)


def _report(
    job: TuningJob,
    outcome: tuple[TuningRun, str, dict[str, float]],
    before: ErrorSums,
    after: ErrorSums,
    calibration: Calibration | None,
    seconds: float,
) -> FineTuning:
    (run, norms, trials), plan = outcome, job.net.plan
    return FineTuning(
        model=plan.model,
        n=plan.n,
        windows=tuple(window.n for window in plan.windows),
        blocks=sum(row.blocks for window in plan.windows if not window.sequential for row in window.segments),
        coarse=plan.coarse,
        teacher=job.teacher.text,
        loss=job.loss.name,
        why=job.loss.why,
        temperature=float(job.loss.temperature),
        match=float(job.match),
        train=run.trained.text,
        trained=run.trained.count,
        norms=norms,
        trials=trials,
        steps=job.steps,
        best=run.best[1],
        samples=job.data.samples,
        tested=after.samples,
        held_out=job.data.held_out,
        rows=tuple(run.rows),
        before=errors_of(before, "before", job.teacher),
        after=errors_of(after, "after", job.teacher),
        reference=job.teacher.reference,
        accuracy=after.accuracy,
        seconds=seconds,
        calibration=calibration,
    )


def _check_options(*, steps: int, temperature: float, match: float, lr: float | None) -> None:
    checks = (
        ("steps", steps, "1 or more steps of training", steps >= 1),
        ("temperature", temperature, "a positive number", 0 < temperature < math.inf),
        ("match", match, "0 or a positive number", 0 <= match < math.inf),
        ("lr", lr, "a positive number", lr is None or 0 < lr < math.inf),
    )
    if faults := [f"{name} is {value!r}; pass {text}" for name, value, text, fits in checks if not fits]:
        raise CalibrationError("; and ".join(faults))


def _check_test(calibration: Calibration | None, test: Batches | None) -> None:
    if calibration is not None and calibration.held_out and test is None:
        raise CalibrationError(
            f"the calibration was measured on {calibration.tested} test samples, and there are none here: its last "
            "stage would be of other samples, that parts were fitted to; pass the same test=, or calibration=None"
        )


def _said(loss: object, calibration: Calibration | None) -> Outputs:
    """What the caller's choices say of the outputs."""
    if loss in ("kl", "cross_entropy"):
        return "logits"
    return "auto" if calibration is None else "logits" if calibration.outputs == "classes" else "values"


def _check_match(match: float, teacher: Teacher) -> None:
    if match and not teacher.has_ends:
        raise CalibrationError(
            f"match={match:g} compares the ends of windows, which the teacher ({teacher.text}) does not have; pass the "
            "model that was converted, or match=0"
        )


def _kind(net: PararealModule, teacher: Teacher, data: TuningData, outputs: Outputs) -> OutputKind:
    """What the outputs are, by the batches held out where labels have to show it."""
    evidence, first = LabelEvidence(), None
    for number, batch in enumerate(data.tests()):
        if number and outputs != "auto":
            break
        values = teacher.in_sequence(batch)
        first = first or values
        evidence.add(values.output, labels_of(batch), values.mask)
    if first is None:
        return find_output_kind(net, None, outputs, evidence)
    interfaces = teacher.original
    reads = interfaces.at(interfaces.last, first.true[interfaces.last]), *first.context["head"]
    return find_output_kind(net, first.output, outputs, evidence, reads)


def _loss(
    loss: LossName | LossFunction,
    kind: OutputKind,
    net: PararealModule,
    teacher: Teacher,
    batch: Any,
    temperature: float,
    recipe: Recipe,
) -> OutputLoss:
    """The loss, tried on a batch held out before any step is taken."""
    mask, labels, output = teacher.in_sequence(batch).mask, labels_of(batch), teacher(batch).output
    chosen = choose_loss(
        loss,
        kind,
        output,
        mask=mask,
        has_labels=labels is not None,
        temperature=temperature,
        label_smoothing=recipe.label_smoothing,
    )
    if chosen.function is None:
        chosen(GraphRun(net)(batch).output, output, batch, labels, mask)
    return chosen


def _default_lr(net: PararealModule, trained: TrainedParameters) -> float:
    """Trained weights of a network without batch norms bear small steps only."""
    added = {id(p) for name, p in net.named_parameters() if name.startswith(("adapters.", "coarse."))}
    moves_original = any(id(parameter) not in added for parameter in trained.free)
    return LR_ORIGINAL if moves_original and not running_norms(net) else LR


def _recipe(recipe: Recipe | None, lr: float | None, steps: int, default: float) -> Recipe:
    if recipe is None:
        warmup = max(1, steps // WARMUP_PART)
        return Recipe(optimizer="adamw", lr=lr or default, schedule="cosine", warmup=warmup, clip=1.0, weight_decay=0.0)
    if recipe.initialise is not None or recipe.amp == "float16":
        raise RecipeError(
            "a recipe of fine-tuning draws no weights and has no loss scale; pass initialise=None, and amp=None or "
            "'bfloat16'"
        )
    return recipe if lr is None else dataclasses.replace(recipe, lr=lr)


def _train(
    job: TuningJob, trained: TrainedParameters, norms: Norms | None, again: Callable[[], TrainedParameters]
) -> tuple[TuningRun, str, dict[str, float]]:
    """Take all steps with batch norms as asked for, or the better way of both; it ends with the best weights."""
    norm_list = trained_norms(job.net, trained)
    if not norm_list or norms is not None:
        run = TuningRun(job, trained, norm_list, by_batch=norms == "train")
        run.look()
        _advance(run, job.steps)
        run.load_best()
        return run, (norms or "") if norm_list else "", {}
    trial = min(job.steps, max(TRIAL_LEAST, job.steps // TRIAL_PART))
    runs = {
        "keep": TuningRun(job, trained, norm_list, by_batch=False),
        "train": TuningRun(job, again(), norm_list, by_batch=True),
    }
    start, states, losses = runs["keep"].state(), dict[str, list[Tensor]](), dict[str, float]()
    for name, run in runs.items():
        job.say(f"trying norms={name!r}")
        run.load(start)
        run.look()
        try:
            _advance(run, trial)
        except (TrainingError, CalibrationError):
            if name == "keep":
                raise
            run.load_best()
        states[name], losses[name] = run.state(), run.best[0]
    chosen = min(losses, key=lambda name: losses[name])
    run = runs[chosen]
    run.load(states[chosen])
    _advance(run, job.steps)
    run.load_best()
    return run, chosen, losses


def _advance(run: TuningRun, stop: int) -> None:
    """Take steps; where one fails, or the caller stops it, the network has the best weights so far."""
    try:
        run.advance(stop)
    except BaseException:
        run.load_best()
        raise
