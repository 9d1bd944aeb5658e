"""Records of batches -> the samples that parts are fitted to, and those held out, which choose between fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pararealize.errors import CalibrationError
from pararealize.plan.spec import Window

from .interfaces import InterfaceRecord, InterfaceValues

__all__ = ["HeldOut", "SampleParts"]

SHARE = 0.2  # of the batches, the last ones


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleParts:
    """The values of a batch, which of its samples are fitted to, and which are held out; ``None`` where none are."""

    values: InterfaceValues
    fitted: slice | None
    held_out: slice | None


class HeldOut:
    """Which samples are held out: the test batches; without any, the last fifth of the batches, or of the only one.

    Args:
        record: the batches to fit to.
        tested: the test batches, ``None`` where there are none.
    """

    def __init__(self, record: InterfaceRecord, tested: InterfaceRecord | None) -> None:
        self.record, self.tested = record, tested
        self._last = max(1, round(SHARE * record.count)) if tested is None and record.count > 1 else 0
        self._samples = 0 if tested is not None or self._last else round(SHARE * record.samples)

    def __str__(self) -> str:
        if self.tested is not None:
            return "the test samples"
        if self._last:
            return f"the last {self._last} of {self.record.count} batches"
        return f"the last {self._samples} of {self.record.samples} samples" if self._samples else ""

    def __bool__(self) -> bool:
        """Whether any samples are held out: a single one is not parted."""
        return bool(str(self))

    def check_masks(self) -> None:
        """Make sure that masks leave something in, of what is fitted to and of what is held out.

        Raises:
            CalibrationError: they exclude every position of the one or the other.
        """
        counts, which = self.record.counts, ""
        split = self.record.count - self._last
        if not any(counts[:split]):
            which = "the batches that are fitted to"
        elif self._last and not any(counts[split:]):
            which = f"{self}, which are held out"
        elif self.tested is not None and not any(self.tested.counts):
            which = "the test batches"
        elif self._samples:
            (parts,) = self.fitted()
            mask = parts.values.mask
            if mask is not None and not (mask[parts.fitted].any() and mask[parts.held_out].any()):
                which = f"{self}, which are held out, or of the others"
        if which:
            raise CalibrationError(
                f"the mask leaves out every position of {which}, so that nothing is compared there; pass one that is "
                "nonzero where there is something, or mask=None"
            )

    def forget(self, window: Window, *, corrected_only: bool = False) -> None:
        """Forget the values of a window, of all batches; see :meth:`InterfaceValues.forget`."""
        self.record.forget(window, corrected_only=corrected_only)
        if self.tested is not None:
            self.tested.forget(window, corrected_only=corrected_only)

    def all(self) -> Iterator[SampleParts]:
        """All batches, those fitted to first."""
        yield from self.fitted()
        if self.tested is not None or self._last:
            yield from self.held_out()

    def fitted(self) -> Iterator[SampleParts]:
        """The batches that are fitted to; an only batch is both, each with its samples."""
        split = self.record.samples - self._samples
        for values in self.record.part(0, self.record.count - self._last):
            if self.tested is not None or self._last:
                yield SampleParts(values=values, fitted=slice(None), held_out=None)
            else:
                yield SampleParts(values=values, fitted=slice(split), held_out=slice(split, None))

    def held_out(self) -> Iterator[SampleParts]:
        """The batches with samples that are held out; all batches where none are."""
        if self.tested is not None:
            for values in self.tested:
                yield SampleParts(values=values, fitted=None, held_out=slice(None))
        elif self._last:
            for values in self.record.part(self.record.count - self._last, self.record.count):
                yield SampleParts(values=values, fitted=None, held_out=slice(None))
        else:
            for parts in self.fitted():
                yield parts if self else SampleParts(values=parts.values, fitted=None, held_out=slice(None))
