"""The options that say which inputs a model is read with -> these inputs, those of a folder included."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

__all__ = ["ExampleOptions"]

SAMPLES = 2  # of an example, where nobody says how many


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExampleOptions:
    """The example input that a model is read with."""

    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Of the example, for which costs are counted. [dim]\\[default: 2; where MODEL is a folder, its "
            "example's][/]"
        ),
    ] = None
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            help="One input without the batch dimension, such as 3,224,224. [dim]\\[default: from the model][/]",
        ),
    ] = None
    input_dtype: Annotated[str, typer.Option(metavar="TYPE", help="float32, bfloat16, int64 (token ids), …")] = (
        "float32"
    )
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=SHAPE:DTYPE",
            help="An input by its name, with the batch in front, such as input_ids=2x128:int64; once for each input "
            "of a model that takes several. NAME=true, false or none for one that is no tensor.",
        ),
    ] = None

    def values(self, name: str, *, meta: bool = False) -> torch.Tensor | dict[str, Any] | None:
        """The input of the model of that name, or its inputs by name; None where the library is to infer it.

        A folder has an example of its own, which is given as many samples as ``--batch-size`` says.

        Raises:
            ExampleError: an option is wrong, or says what another one or the folder says already.
        """
        from . import arguments, saved_model

        of_folder = not self.inputs and self.input_shape is None and saved_model.is_saved(name)
        self._check("--input" if self.inputs else f"the folder {name}" if of_folder else "")
        if self.inputs:
            return arguments.inputs(self.inputs, meta=meta)
        if not of_folder:
            size = SAMPLES if self.batch_size is None else self.batch_size
            return arguments.example(name, self.input_shape, self.input_dtype, size, meta=meta)
        inputs: Any = saved_model.example(name, meta=meta)
        if inputs is None or self.batch_size is None:
            return inputs  # type: ignore[no-any-return]
        from pararealize.comparison.latency import of_batch_size

        return of_batch_size(inputs, arguments.batch_size(self.batch_size))  # type: ignore[no-any-return]

    def samples(self, inputs: Any) -> int:
        """How many samples inputs have: the leading size of the first tensor; of none, what ``--batch-size`` says."""
        import torch

        from pararealize.tracing.containers import leaves_of

        sizes = [int(leaf.shape[0]) for leaf in leaves_of(inputs) if isinstance(leaf, torch.Tensor) and leaf.ndim]
        return next(iter(sizes), SAMPLES if self.batch_size is None else self.batch_size)

    def _check(self, source: str) -> None:
        """Refuse options that say again what ``source``, where there is one, says of the inputs."""
        from pararealize.errors import ExampleError

        if self.inputs and self.input_shape is not None:
            raise ExampleError(
                "--input and --input-shape are both there; say every input with --input, or leave it out"
            )
        again = {"--input-dtype": self.input_dtype} if source and self.input_dtype != "float32" else {}
        if self.inputs and self.batch_size is not None:
            again["--batch-size"] = str(self.batch_size)
        if again:
            words = ", ".join(f"{flag} {value}" for flag, value in again.items())
            raise ExampleError(
                f"{words}: {source} says of which sizes and types the inputs are; leave it out"
                + ("" if self.inputs else ", or write --input-shape, too")
            )
