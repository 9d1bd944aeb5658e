"""A calibrated network, a data set, K -> the network after K steps of training all of it, and a longer Calibration.

The training loop is :func:`~pararealize.train.loop.fit`; here stand the data of so few steps and a recipe for them.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from pararealize.argument_types import typed_arguments
from pararealize.data.dataset import Dataset
from pararealize.errors import CalibrationError, DataError, ModelError, RecipeError
from pararealize.network.module import PararealModule
from pararealize.restacking.batchnorm import running_norms
from pararealize.restore import preserve_training_flags
from pararealize.train.loop import fit
from pararealize.train.recipe import Recipe
from pararealize.train.run.progress import Progress
from pararealize.train.run.score import logits_of

from .fitting import calibration_mode, check_network
from .interface_errors import measure_errors
from .interfaces import InterfaceRecord, Interfaces
from .report import Calibration

__all__ = ["Excerpt", "fine_tune"]

LR = 1e-3
WARMUP_PART = 10  # the rate rises for a tenth of the steps
FAR = 0.5  # relative error of the output from which on batch norms are trained as usual


@typed_arguments(CalibrationError, net=ModelError, data=DataError, recipe=RecipeError)
def fine_tune(
    net: PararealModule,
    data: Dataset,
    calibration: Calibration,
    *,
    steps: int,
    recipe: Recipe | None = None,
    norms: Literal["keep", "train"] | None = None,
    original: nn.Module | None = None,
    seed: int = 0,
    report: Callable[[Progress], None] | None = None,
) -> Calibration:
    r"""Train a calibrated network for some steps, the original's weights too, and measure it as before.

    The loss is half the cross-entropy with the labels and half that with the probabilities of the original, which runs
    beside, as it was:

    .. math:: \tfrac12 H(\text{label}, \bar f(x)) + \tfrac12 H(\sigma f(x), \sigma \bar f(x)),

    with σ the softmax.

    A step costs one forward pass of the original more than a step of training.

    Errors are against the network in sequence as it was when this began; its interfaces move while everything is
    trained, so only the output and the accuracy have to improve.

    Args:
        net: the network, calibrated; trained where it is, and its training flags left as found.
        data: the training part is trained on, the test part measured on; the training part is measured on, too, where
            the calibration's errors are on what was fitted to, so that the stages can be compared.
        calibration: the report so far.
        steps: steps of training, each on a batch of the data set.
        recipe: how to train; AdamW with a rate of 1e-3 that rises for a tenth of the steps and falls as a cosine, when
            left out. Its epochs do not count: the steps do.
        norms: ``"keep"`` the statistics that all batch norms have, or ``"train"`` as usual, normalising by the batch.
            Left out: keep, where calibration left a relative error of the output below one half; beyond, little of what
            was fitted is worth keeping.
        original: the model that was converted, which has the original's statistics where calibration renewed those of
            batch norms; the network in sequence stands for it when left out.
        seed: fixes dropout and the like.
        report: called after every step.

    Returns:
        The calibration with the stage ``"fine-tuned"``.

    Raises:
        CalibrationError: ``steps`` is not positive; labels do not fit the output; statistics were renewed, and the
            original that has the old ones is missing.
        CheckpointError: ``original`` is another model.
        TrainingError: the loss is not finite any more.

    Example:
        >>> from pararealize import pararealize
        >>> from pararealize import calibrate
        >>> from pararealize.data import digits
        >>> from pararealize.models import resnet20
        >>> data = digits(image_size=8)
        >>> net = pararealize(resnet20(), n=3, coarse="linear")
        >>> calibration = calibrate(net, data.batches, test=data.test_batches)
        >>> calibration = fine_tune(net, data, calibration, steps=20)
        >>> [errors.stage for errors in calibration.stages]
        ['before', 'after', 'fine-tuned']
    """
    check_network(net)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise CalibrationError(f"steps is {steps!r}; pass 1 or more steps of training")
    if norms not in ("keep", "train", None):
        raise CalibrationError(f"norms is {norms!r}; pass 'keep', 'train' or None")
    if calibration.renewed and original is None:
        raise CalibrationError(
            f"running statistics were renewed in {', '.join(calibration.renewed[:3])}, so that the network in sequence "
            "is no longer the original; pass original=model, the model that was converted"
        )
    keep = norms == "keep" or (norms is None and calibration.stages[-1].output < FAR)
    recipe = recipe or Recipe(optimizer="adamw", lr=LR, schedule="cosine", warmup=max(1, steps // WARMUP_PART))
    before = copy.deepcopy(net).eval()
    if original is not None:
        before.load_original_state_dict(original.state_dict())
    guided = Guided(net, Interfaces(before), keep_norms=keep)
    recipe = GuidedRecipe(**dataclasses.asdict(recipe) | {"epochs": 1}, guide=guided)
    with preserve_training_flags(net):
        fit(guided, Excerpt.of(data, steps), recipe, seed=seed, report=report)
    with calibration_mode(net, seed), calibration_mode(before, seed):
        batches = data.test_batches if calibration.held_out else data.batches
        record, reference = (InterfaceRecord(Interfaces(each), batches, keep=0) for each in (net, before))
        sums = measure_errors(record.interfaces, record, reference=reference)
    stages = (*calibration.stages, sums.errors("fine-tuned"))
    return dataclasses.replace(calibration, stages=stages, fine_tune_steps=calibration.fine_tune_steps + steps)


class Guided(nn.Module):
    """A network that is trained with the original beside it, its batch norms in eval mode where they are to be kept.

    A segment's batch norms have the statistics of its true input, and coarse blocks were fitted to what it gives with
    them. In train mode they would normalise the adapter's output by its own statistics: another function, to which
    nothing was fitted.
    """

    original_output: Any

    def __init__(self, net: PararealModule, original: Interfaces, *, keep_norms: bool) -> None:
        super().__init__()
        self.net, self.keep_norms = net, keep_norms
        self.original, self.original_output = original, None  # Interfaces are no module: the original is not trained

    def forward(self, x: Tensor) -> Any:
        """The network's output; in train mode the original's is computed beside it, for the loss."""
        if self.training:
            self.original_output = self.original.in_sequence(x).output
        return self.net(x)

    def train(self, mode: bool = True) -> "Guided":
        """Set the mode of all modules, or of all but the batch norms."""
        super().train(mode)
        for norm in running_norms(self) if self.keep_norms else ():
            norm.training = False
        return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidedRecipe(Recipe):
    """A recipe whose loss is half that of the labels and half that of the original's own probabilities."""

    guide: Guided

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """``(cross-entropy with the labels + cross-entropy with the original's softmax) / 2``."""
        teacher = logits_of(self.guide.original_output, labels).to(output.device).softmax(1)
        hard = functional.cross_entropy(output, labels.to(output.device), label_smoothing=self.label_smoothing)
        return (hard + functional.cross_entropy(output, teacher)) / 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt(Dataset):
    """A data set of which one epoch is so many batches, from as many epochs of ``whole`` as that takes.

    Example:
        >>> from pararealize.data import load
        >>> data = load("peaks", batch_size=2000)
        >>> [len(labels) for _, labels in Excerpt.of(data, 4).epoch(0)]
        [2000, 2000, 1000, 2000]
    """

    whole: Dataset
    count: int

    @staticmethod
    def of(data: Dataset, count: int) -> "Excerpt":
        """The first ``count`` batches."""
        fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(Dataset)}
        return Excerpt(**fields, whole=data, count=count)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.count

    def epoch(self, number: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from batch ``start`` on."""
        first, last = number * self.count + start, (number + 1) * self.count
        while first < last:
            epoch, batch = divmod(first, self.whole.steps)
            for some in self.whole.epoch(epoch, start=batch, rank=rank, world=world):
                yield some
                first += 1
                if first == last:
                    return
