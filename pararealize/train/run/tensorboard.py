"""Rows of a training run -> scalars that TensorBoard shows. Only this file imports tensorboard, which is optional."""

import importlib.util
from pathlib import Path
from typing import Any

from pararealize.errors import OutputError
from pararealize.multigrid.monitor import Event

from .history import Row, StepRow

__all__ = ["Board", "has_tensorboard"]


def has_tensorboard() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("tensorboard") is not None


class Board:
    """Writes event files into a folder.

    Args:
        folder: for the files; made where it does not exist.
        step: how many steps are taken already; what an earlier process wrote of later ones is hidden.

    Raises:
        OutputError: tensorboard is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        if not has_tensorboard():
            raise OutputError(
                "TensorBoard's files need the tensorboard package, which is not installed; say pip install "
                "'pararealize[train]' (or pip install tensorboard), or leave them out (tensorboard=False, "
                "--no-tensorboard)"
            )
        from torch.utils.tensorboard import SummaryWriter

        try:
            self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        except OSError as error:
            raise OutputError(f"cannot write TensorBoard's files into {str(folder)!r}: {error.strerror}") from error

    def add(self, row: Row, rate: float) -> None:
        """Show a row; ``rate`` is samples a second."""
        if isinstance(row, Event):
            self._writer.add_text("monitor", str(row), row.step)
            return
        values: dict[str, float | None] = {"loss": row.loss, "error": row.error, "lr": row.lr}
        if isinstance(row, StepRow):
            kind, more = "step", {"gradient": row.gradient, "samples a second": rate}
        else:
            kind, more = "epoch", {"test loss": row.test_loss, "test error": row.test_error}
        for name, value in (values | more).items():
            if value is not None:
                self._writer.add_scalar(f"{kind}/{name}", value, row.step)

    def close(self) -> None:
        """Write what is still buffered."""
        self._writer.close()
