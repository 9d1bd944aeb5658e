"""The options that say which data set a command takes, in what batches and how normalised -> the data set."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pararealize.data.dataset import Dataset
    from pararealize.data.own_batches import OwnBatches

__all__ = ["DataOptions"]

of_data = partial(typer.Option, rich_help_panel="The data")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Which data set, and how it comes."""

    data: Annotated[
        str,
        of_data(
            metavar="NAME",
            help="digits, glyphs, fashion_mnist, mnist, cifar10, cifar100, svhn, peaks, imagefolder:DIR, or "
            "file.py:callable that gives batches.",
        ),
    ] = "digits"
    data_dir: Annotated[Path | None, of_data(metavar="FOLDER", help="Where it lies.")] = None
    batch_size: Annotated[int, of_data(help="Samples in a batch, of all copies together.", min=1)] = 128
    count: Annotated[
        str | None, of_data(metavar="TRAIN,TEST", help="Samples at most, such as 10000,2000. [dim]\\[default: all][/]")
    ] = None
    image_size: Annotated[int | None, of_data(help="Pixels of a side. [dim]\\[default: the data set's][/]", min=1)] = (
        None
    )
    channels: Annotated[
        int | None, of_data(help="1 or 3. [dim]\\[default: what MODEL reads, where that is known][/]", min=1)
    ] = None
    mean: Annotated[
        str | None,
        of_data(
            metavar="NUMBERS",
            help="Of the channels' pixels, from 0 to 1, with commas. [dim]\\[default: the training part's][/]",
        ),
    ] = None
    std: Annotated[str | None, of_data(metavar="NUMBERS", help="Their deviations; with --mean.")] = None
    augment: Annotated[
        bool | None,
        of_data(
            "--augment/--no-augment", help="Random crops and flips. [dim]\\[default: as is usual for the data set][/]"
        ),
    ] = None

    def load(self, seed: int, *, model: str | None = None) -> Dataset | OwnBatches:
        """The data set, or the user's own batches.

        Args:
            seed: of the order of the batches.
            model: that reads them: images of a set come with as many channels as it takes.

        Raises:
            DataError: there is no such set, or options do not fit it.
        """
        from pararealize.data.catalogue import load
        from pararealize.data.own_batches import OwnBatches, own_data
        from pararealize.errors import DataError

        count = self._count()
        if self.is_own:
            if asked := self._image_options():
                raise DataError(
                    f"{', '.join(asked)} is said of images of a set by name, and {self.data} gives batches of its own; "
                    "leave it out, and have the batches come so"
                )
            given = own_data(self.data, count=count)
            return given if isinstance(given, OwnBatches) else self._as_asked(given, seed)
        channels = self.channels
        if channels is None and model is not None and self.data.partition(":")[0] not in ("peaks",):
            channels = _channels_of(model)
        return load(
            self.data,
            batch_size=self.batch_size,
            seed=seed,
            data_dir=self.data_dir,
            augment=self.augment,
            image_size=self.image_size,
            channels=channels,
            count=count,
            mean=_numbers("--mean", self.mean),
            std=_numbers("--std", self.std),
        )

    def for_training(self, seed: int, *, model: str | None = None) -> Dataset:
        """The same with all samples at hand, to be trained on for epochs."""
        from pararealize.data.own_batches import OwnBatches

        data = self.load(seed, model=model)
        return data.dataset(self.batch_size, seed) if isinstance(data, OwnBatches) else data

    def _as_asked(self, data: Dataset, seed: int) -> Dataset:
        """A data set of the user's own code, with its batch size and seed unless options say others."""
        defaults = {field.name: field.default for field in fields(self)}
        batch_size = data.batch_size if self.batch_size == defaults["batch_size"] else self.batch_size
        return replace(data, batch_size=batch_size, seed=seed or data.seed)

    @property
    def is_own(self) -> bool:
        """Whether the data comes of the user's own code."""
        from pararealize.data.catalogue import names

        where, colon, _ = self.data.partition(":")
        return bool(colon) and where not in {name.partition(":")[0] for name in names()}

    def _count(self) -> tuple[int, int] | None:
        from pararealize.errors import DataError

        from . import arguments

        if self.count is None:
            return None
        counts = [count for part in self.count.split(",") if (count := arguments.whole_number(part.strip()))]
        if len(counts) not in (1, 2) or len(counts) < len(self.count.split(",")):
            raise DataError(f"--count {self.count!r} are no numbers; write training and test, such as 9000,1000")
        return counts[0], counts[-1]

    def _image_options(self) -> list[str]:
        values: dict[str, Any] = {
            "data-dir": self.data_dir,
            "image-size": self.image_size,
            "channels": self.channels,
            "mean": self.mean,
            "std": self.std,
            "augment": self.augment,
        }
        return [f"--{name}" for name, value in values.items() if value is not None]


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    from pararealize.errors import DataError

    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise DataError(f"{option} {text!r} are no numbers; write one for each channel, such as 0.5,0.5,0.5") from error


def _channels_of(model: str) -> int | None:
    """How many channels of images a model reads, where that is 1 or 3 and known without building it."""
    from pararealize import models

    from . import saved_model

    sizes: tuple[int, ...] | None = None
    if saved_model.is_saved(model):
        inputs = saved_model.example(model, meta=True)
        values = list(inputs.values()) if isinstance(inputs, dict) else list(inputs or ())
        sizes = tuple(values[0].shape[1:]) if values and hasattr(values[0], "shape") else None
    elif models.is_registered(model):
        sizes = models.default_input(model)
    return sizes[0] if sizes is not None and len(sizes) == 3 and sizes[0] in (1, 3) else None
